"""The layer of kernel `cpu-int8`, whose rules are in cpu_int8.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitgate.kernels.affine import Affine


class Int8Linear(nn.Module):
    """A linear layer of int8 codes with one scale per output."""

    codes: Tensor
    scale: Tensor
    offset: Tensor | None

    def __init__(self, weight: Affine, bias: Tensor | None) -> None:
        super().__init__()
        self.grouping = weight.grouping
        # weight = (code - zero) * scale = (code - 128) * scale + (128 - zero) * scale; the codes
        # and what they are off by share one rounded scale, so that a small weight stays small
        # one scale for all may be a view of a single number, and torch's kernel reads on behind it
        scale = weight.scale[:, 0].bfloat16().contiguous()
        offset = (128 - weight.zero[:, 0].float()) * scale.float()
        self.register_buffer("codes", (weight.codes.to(torch.int16) - 128).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("offset", None if weight.grouping.symmetric else offset)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] in any floating dtype -> [..., out_features] in the same."""
        rows = x.reshape(-1, self.grouping.in_features).bfloat16()
        y = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scale)
        if self.offset is not None:
            y = torch.addcmul(y.float(), rows.float().sum(-1, keepdim=True), self.offset)
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.grouping.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return str(self.grouping)
