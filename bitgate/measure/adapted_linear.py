"""The layer behind `bitgate.measure.adapters`; imported only once torch is needed anyway."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class AdaptedLinear(nn.Module):
    """Any linear layer, however its weight is packed, with a low-rank adapter beside it:
    y = layer(x) + scale B A x."""

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> None:
        """`a` is [rank, inputs], `b` [outputs, rank], in the dtype that the model computes in."""
        super().__init__()
        self.layer = layer
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        out: Tensor = self.layer(x)
        low = nn.functional.linear(x.to(own.a.dtype), own.a)
        return out + self.scale * nn.functional.linear(low, own.b).to(out.dtype)
