"""Affine-quantized weights, the common ground between quantization methods and kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grouping:
    """How a linear layer's weight [out_features, in_features] is cut into groups.

    `axis` 1 groups along the inputs (each row holds whole groups only if `group_size` divides
    `in_features`), 0 along the outputs. `symmetric` says that every zero is 2^(bits - 1), the
    middle of the codes.
    """

    out_features: int
    in_features: int
    bits: int
    group_size: int
    axis: int
    symmetric: bool = False

    def __str__(self) -> str:
        symmetric = ", symmetric" if self.symmetric else ""
        return (
            f"[{self.out_features}, {self.in_features}] at {self.bits} bits, "
            f"groups of {self.group_size} on axis {self.axis}{symmetric}"
        )


@dataclass(frozen=True)
class Affine:
    """weight[n, k] = (codes[n, k] - zero[n, k // g]) * scale[n, k // g].

    `codes` is uint8 [out_features, in_features]; `scale` and `zero` are floating,
    [out_features, in_features // group_size].
    """

    grouping: Grouping
    codes: Tensor
    scale: Tensor
    zero: Tensor
