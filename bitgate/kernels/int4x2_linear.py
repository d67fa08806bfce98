"""The layer of kernel `cpu-int4x2`, whose rules are in cpu_int4x2.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitgate.kernels.affine import Affine
from bitgate.kernels.int4_linear import pack_codes


class Int4x2Linear(nn.Module):
    """A linear layer whose 8-bit codes are packed as high and low halves."""

    packed: Tensor
    scale_and_zero: Tensor

    def __init__(self, weight: Affine, bias: Tensor | None) -> None:
        super().__init__()
        self.grouping = weight.grouping
        # codes and zero share one rounded scale, so that a small weight stays small
        scale, zero = weight.scale.bfloat16().float(), weight.zero.float()
        offset = (136 - zero) * scale
        rounded = offset.bfloat16().float()
        # the kernel computes (code - 8) * scale + offset
        high = torch.stack([16 * scale, rounded], dim=-1)
        low = torch.stack([scale, offset - rounded], dim=-1)
        pairs = torch.cat([high, low], 1).transpose(0, 1).contiguous()
        halves = torch.cat([weight.codes >> 4, weight.codes & 15], 1)
        self.register_buffer("packed", pack_codes(halves))
        self.register_buffer("scale_and_zero", pairs.bfloat16())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] in any floating dtype -> [..., out_features] in the same."""
        rows = x.reshape(-1, self.grouping.in_features).bfloat16()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            torch.cat([rows, rows], 1),
            self.packed,
            self.grouping.group_size,
            self.scale_and_zero,
        )
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.grouping.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return str(self.grouping)
