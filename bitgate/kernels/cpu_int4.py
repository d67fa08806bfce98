"""4-bit weights on torch's packed int4 CPU kernel (`aten::_weight_int4pack_mm_for_cpu`).

Codes stay exact; scale and zero are rounded to bfloat16, and so are the activations: fp32
activations would reach a reference kernel that is 10 to 100 times slower.
Source of the layout: torch/_meta_registrations.py and aten/src/ATen/native/LinearAlgebra.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Affine, Grouping

if TYPE_CHECKING:
    from bitgate.kernels.int4_linear import Int4Linear

GROUP_SIZES = (32, 64, 128, 256)


def refuses(grouping: Grouping) -> str | None:
    """Why the kernel cannot take a layer grouped like this; None if it can."""
    if grouping.bits != 4:
        return "it holds 4-bit codes only"
    return refuses_groups(grouping)


def refuses_groups(grouping: Grouping) -> str | None:
    """The same, whatever the codes."""
    if grouping.axis != 1:
        return "groups must run along the inputs (axis 1)"
    if grouping.group_size not in GROUP_SIZES:
        return f"the group size must be one of {', '.join(map(str, GROUP_SIZES))}"
    if grouping.in_features % grouping.group_size:
        return f"the group size must divide the {grouping.in_features} inputs"
    if grouping.out_features % 16:
        return "the number of outputs must be a multiple of 16"
    return None


def layer_class() -> type[Int4Linear]:
    """The class of the modules that `pack` makes."""
    from bitgate.kernels.int4_linear import Int4Linear

    return Int4Linear


def pack(weight: Affine, bias: Any) -> Int4Linear:
    """The module that executes `weight`."""
    return layer_class()(weight, bias)


def packed_bytes(grouping: Grouping) -> int:
    """Bytes of the packed codes and of scale and zero in bfloat16."""
    n = grouping.out_features * grouping.in_features
    return n // 2 + 2 * 2 * (n // grouping.group_size)
