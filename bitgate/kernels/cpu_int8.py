"""8-bit weights, one scale per output, on torch's int8 CPU kernel (`aten::_weight_int8pack_mm`).

Codes stay exact; scale and activations are rounded to bfloat16, for which the kernel is fast: on
one thread it multiplies [1, 2048] by [2048, 8192] in 5 ms, in float32 it takes 73.
The kernel knows no zero: what a zero other than 128 adds is a product of the sum of the inputs
with one number per output.
Source: aten/src/ATen/native/cpu/int8mm_kernel.cpp, which reads 16 inputs at a time, beyond the end
of a row where they are fewer: it then gives wrong numbers or crashes, so that is refused here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Affine, Grouping

if TYPE_CHECKING:
    from bitgate.kernels.int8_linear import Int8Linear

INPUTS_AT_ONCE = 16


def refuses(grouping: Grouping) -> str | None:
    """Why the kernel cannot take a layer grouped like this; None if it can."""
    if grouping.bits != 8:
        return "it holds 8-bit codes only"
    if grouping.axis != 1 or grouping.group_size != grouping.in_features:
        return f"it has one scale per output: the group must be all {grouping.in_features} inputs"
    if grouping.in_features % INPUTS_AT_ONCE:
        return f"the number of inputs must be a multiple of {INPUTS_AT_ONCE}"
    return None


def layer_class() -> type[Int8Linear]:
    """The class of the modules that `pack` makes."""
    from bitgate.kernels.int8_linear import Int8Linear

    return Int8Linear


def pack(weight: Affine, bias: Any) -> Int8Linear:
    """The module that executes `weight`."""
    return layer_class()(weight, bias)


def packed_bytes(grouping: Grouping) -> int:
    """Bytes of the codes, of a scale in bfloat16 and, unless symmetric, of an offset in float32 for
    every output."""
    outputs = grouping.out_features
    return outputs * (grouping.in_features + 2 + (0 if grouping.symmetric else 4))
