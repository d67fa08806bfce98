"""What a measurement is to the gates: batches of paired observations, and a way to sum them up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from bitgate.metric import Metric

if TYPE_CHECKING:
    import numpy as np

    #: observations of one kind, column by column, all columns equally long
    Items = Mapping[str, np.ndarray]


class MeasureError(RuntimeError):
    """Something cannot be measured as it was asked for; the message says why, and the remedy."""


class UnavailableError(MeasureError):
    """This machine has no means of measuring it: what was asked for is not decided, nor wrong."""


@dataclass(frozen=True)
class Batch:
    """Some observations and the time that the quantized model took for them.

    `seconds` becomes pytest-benchmark's rounds; `items` holds one value per observation and
    column (numbers or strings), and is kept in the run's Parquet file.
    """

    seconds: Sequence[float]
    items: Mapping[str, Sequence[float] | Sequence[int] | Sequence[str]] = field(
        default_factory=dict
    )


class Measurement(Protocol):
    """Yields batches until there are no more, and sums up those seen so far.

    One that knows how many observations there can be says so in an attribute `most`: the error
    that may be spent is then divided better over the looks at them.
    """

    #: observations needed before an interval means anything
    least: int

    def batches(self) -> Iterator[Batch]:
        """Measure, batch by batch. Closing the iterator early must lose nothing."""
        ...

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        """The metrics of the observations so far.

        Intervals are computed at `level` (two-sided; stricter than `nominal` when there are
        several looks) and carry `nominal`, the coverage over all looks together.
        """
        ...
