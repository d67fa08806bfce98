"""The saved runs as series: one metric of one case, executed in one way, run after run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitgate.history.points import History, Point

#: units of quantities that follow the machine and its load: never compared across machines
ABSOLUTE = ("s", "ms", "token/s")


@dataclass(frozen=True)
class Series:
    """One metric of one case, executed in one way; absolute times on one machine."""

    points: Sequence[Point]  #: their values are finite
    left_out: int  #: that were not

    @property
    def first(self) -> Point:
        return self.points[0]

    @property
    def absolute(self) -> bool:
        return self.first.unit in ABSOLUTE

    @property
    def values(self) -> list[float]:
        return [point.metric.value for point in self.points]


def series(history: History) -> list[Series]:
    """Every series with a finite value, in the order of first appearance."""
    found: dict[tuple[object, ...], list[Point]] = {}
    left_out: dict[tuple[object, ...], int] = {}
    for point in history.points:
        key = _key(point)
        if math.isfinite(point.metric.value):
            found.setdefault(key, []).append(point)
        else:
            left_out[key] = left_out.get(key, 0) + 1
    return [Series(points, left_out.get(key, 0)) for key, points in found.items()]


def _key(point: Point) -> tuple[object, ...]:
    of, how = point.of, point.of.execution
    machine = of.machine if point.unit in ABSOLUTE else None
    return (
        *(of.case, point.metric.name, of.protocol),
        *(of.device, how.kernel, how.dtype, how.threads, how.compiled, machine),
    )
