"""What a layer of method `linear` is: how its weight is coded, and what is computed with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bitgate.kernels.affine import Grouping


@dataclass(frozen=True)
class Form:
    """A product or, with `convolution`, one over patches whose stride, padding, dilation and groups
    those are. A file says this of each layer."""

    shape: tuple[int, ...]  #: of the weight, outputs first
    bits: int
    group_size: int  #: weights that share a scale
    symmetric: bool
    convolution: dict[str, Any] | None = None

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def codes(self) -> int:
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        return self.codes // self.group_size

    @property
    def grouping(self) -> Grouping:
        """As kernels see it: they know rows, so one scale for all is the same one for each."""
        inputs = self.codes // self.outputs
        size = min(self.group_size, inputs)
        return Grouping(self.outputs, inputs, self.bits, size, 1, self.symmetric)
