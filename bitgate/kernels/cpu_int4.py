"""4-bit weights on torch's packed int4 CPU kernel (`aten::_weight_int4pack_mm_for_cpu`).

Codes stay exact; scale and zero are rounded to bfloat16, and so are the activations: fp32
activations would reach a reference kernel that is 10 to 100 times slower.
Source of the layout: torch/_meta_registrations.py and aten/src/ATen/native/LinearAlgebra.cpp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitgate.kernels.affine import Affine, Grouping

GROUP_SIZES = (32, 64, 128, 256)


class Int4Linear(nn.Module):
    """A linear layer whose weight is packed two codes to a byte."""

    packed: Tensor
    scale_and_zero: Tensor

    def __init__(self, weight: Affine, bias: Tensor | None) -> None:
        super().__init__()
        self.grouping = weight.grouping
        scale, zero = weight.scale.float(), weight.zero.float()
        # the kernel computes (code - 8) * scale + offset
        pairs = torch.stack([scale, (8 - zero) * scale], dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("packed", _packed(weight.codes))
        self.register_buffer("scale_and_zero", pairs.bfloat16())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] in any floating dtype -> [..., out_features] in the same."""
        rows = x.reshape(-1, self.grouping.in_features).bfloat16()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, self.grouping.group_size, self.scale_and_zero
        )
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.grouping.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return str(self.grouping)


def _packed(codes: Tensor) -> Tensor:
    """Codes uint8 [out_features, in_features], as the kernel wants them.

    The packing asks for int32. Its layout is of blocks of at most 64 rows, so that some rows at a
    time give the same bytes, without four times the memory of the whole.
    """
    convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    rows = (part.to(torch.int32).contiguous() for part in codes.split(_ROWS))
    return torch.cat([convert(part, 1) for part in rows])


_ROWS = 1024

LAYER = Int4Linear


def refuses(grouping: Grouping) -> str | None:
    """Why the kernel cannot take a layer grouped like this; None if it can."""
    if grouping.bits != 4:
        return "it holds 4-bit codes only"
    if grouping.axis != 1:
        return "groups must run along the inputs (axis 1)"
    if grouping.group_size not in GROUP_SIZES:
        return f"the group size must be one of {', '.join(map(str, GROUP_SIZES))}"
    if grouping.in_features % grouping.group_size:
        return f"the group size must divide the {grouping.in_features} inputs"
    if grouping.out_features % 16:
        return "the number of outputs must be a multiple of 16"
    return None


def pack(weight: Affine, bias: Any) -> Int4Linear:
    """The module that executes `weight`."""
    return Int4Linear(weight, bias)


def packed_bytes(grouping: Grouping) -> int:
    """Bytes of the packed codes and of scale and zero in bfloat16."""
    n = grouping.out_features * grouping.in_features
    return n // 2 + 2 * 2 * (n // grouping.group_size)
