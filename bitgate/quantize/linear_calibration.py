"""Which range the inputs and outputs of layers take, seen while a model reads a text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from bitgate.quantize.errors import QuantizeError

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENS_PER_BATCH = 1024


class Observer:
    """The range that holds all but a share of the values seen, cut off alike on either side.

    Exact, however many values there are: only as many of the largest and of the smallest are kept
    as may have to be cut off in the end, `most` values in all.
    """

    def __init__(self, percentile: float, most: int) -> None:
        """`percentile` 100 is minimum to maximum; 99.9 cuts off one in a thousand on each side."""
        self.tail = 1 - percentile / 100
        self.kept = self._cut(most) + 1
        self.seen = 0
        self.finite = True  #: whether all of them were
        self._largest: Tensor | None = None
        self._smallest: Tensor | None = None

    def see(self, values: Tensor) -> None:
        """Values of any shape."""
        flat = values.detach().reshape(-1)
        self.seen += len(flat)
        ends = flat.aminmax()  # NaN if any value is
        self.finite &= bool((ends.max - ends.min).isfinite())
        cuts = self.kept > 1
        low, high = (flat, flat) if cuts else (ends.min.reshape(1), ends.max.reshape(1))
        self._largest = self._extremes(self._largest, high, largest=True)
        self._smallest = self._extremes(self._smallest, low, largest=False)

    def range(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value left."""
        if self._largest is None or self._smallest is None:
            raise ValueError("nothing was seen")
        # no more than was kept, should a layer be called more often than it was thought to be
        place = min(self._cut(self.seen), self.kept - 1)
        return self._smallest[place], self._largest[place]

    def _cut(self, values: int) -> int:
        return math.floor(self.tail * values + 1e-9)  # 0.1 % of 1000 is 1, whatever floats say

    def _extremes(self, kept: Tensor | None, values: Tensor, largest: bool) -> Tensor:
        """The most extreme ones of those kept and of new ones, in order."""
        import torch

        if kept is not None:
            if len(kept) == self.kept:  # most values are out of the question
                beyond = values > kept[-1] if largest else values < kept[-1]
                values = values[beyond]
            values = torch.cat([kept, values])
        return values.topk(min(self.kept, len(values)), largest=largest).values


class Ranges(NamedTuple):
    """What went into a layer and what came out, each as its smallest and largest value."""

    input: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]


def calibrate(
    module: nn.Module, names: Collection[str], batches: Sequence[Tensor], percentile: float
) -> dict[str, Ranges]:
    """Run batches, the first of them the largest, through a model and watch its layers.

    Raises:
        QuantizeError: if a layer is not called, or sees numbers that are not finite.
    """
    import torch

    seen: dict[str, tuple[Observer, Observer]] = {}

    def watch(name: str, x: Tensor, y: Tensor) -> None:
        if name not in seen:
            most = [side.numel() * len(batches) for side in (x, y)]
            seen[name] = Observer(percentile, most[0]), Observer(percentile, most[1])
        for observer, values in zip(seen[name], (x, y), strict=True):
            observer.see(values)

    with torch.inference_mode(), _watching(module, names, watch):
        for batch in batches:
            module(batch)
    for name in names:
        if name not in seen:
            raise QuantizeError(f"{name}: the model does not call it, so its inputs have no range")
        if not all(observer.finite for observer in seen[name]):
            raise QuantizeError(f"{name}: what it computes is not finite")
    return {name: Ranges(x.range(), y.range()) for name, (x, y) in seen.items()}


@contextmanager
def _watching(module: nn.Module, names: Collection[str], watch: Any) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda layer, given, result: watch(name, given[0], result)

    handles = [module.get_submodule(n).register_forward_hook(hook(n)) for n in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
