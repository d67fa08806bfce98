"""8-bit weights in groups on torch's packed int4 CPU kernel, as two 4-bit halves.

torch has no CPU kernel for 8-bit codes with a scale per group. But a code is 16 high + low, so that

    sum_k (code - zero) scale x = sum_k (high - 8) 16 scale x + sum_k (low - 8) scale x
                                  + sum_k (136 - zero) scale x

is one call of the int4 kernel with twice as many inputs: the high halves, then the low ones, the
inputs given to each. Codes stay exact, all is summed in float32; scales and activations are rounded
to bfloat16, offsets to two numbers of bfloat16. A row takes twice as long as on `cpu-int4`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Affine, Grouping
from bitgate.kernels.cpu_int4 import refuses_groups

if TYPE_CHECKING:
    from bitgate.kernels.int4x2_linear import Int4x2Linear


def refuses(grouping: Grouping) -> str | None:
    """Why the kernel cannot take a layer grouped like this; None if it can."""
    if grouping.bits != 8:
        return "it holds 8-bit codes only"
    return refuses_groups(grouping)


def layer_class() -> type[Int4x2Linear]:
    """The class of the modules that `pack` makes."""
    from bitgate.kernels.int4x2_linear import Int4x2Linear

    return Int4x2Linear


def pack(weight: Affine, bias: Any) -> Int4x2Linear:
    """The module that executes `weight`."""
    return layer_class()(weight, bias)


def packed_bytes(grouping: Grouping) -> int:
    """Bytes of the codes, and of scale and offset in bfloat16 for either half of each group."""
    n = grouping.out_features * grouping.in_features
    return n + 2 * 2 * 2 * (n // grouping.group_size)
