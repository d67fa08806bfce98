"""Which metrics changed over the runs, and with which run and commit each change began.

A series is judged in one of three ways, by what it is:

- exact (bytes, layers): any other value is a change.
- repeating: scores of the same windows by the same code come out the same to the last bit. Where
  most runs repeat the one before, any change of at least `LEAST_CHANGE` is one; between runs that
  scored different numbers of windows only one beyond both intervals.
- varying (speed, or scores on several machines): levels are compared by a test
  (`bitgate.history.changepoint`), at a significance that accounts for all series together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from bitgate.history.changepoint import LEAST, change_points
from bitgate.history.points import History, Point
from bitgate.history.series import Series, series

#: in this share of unchanged histories anything is found at all in series that vary
ALPHA = 0.02
#: the same for absolute times: neighbours are alike, so what the test promises does not hold
ALPHA_ABSOLUTE = 0.001
#: relative: below it a change is no news, however sure (other rounding on another machine)
LEAST_CHANGE = 0.001

Way = Literal["exact", "repeating", "varying"]
Direction = Literal["better", "worse", "neither"]


@dataclass(frozen=True)
class Change:
    """A series from point number `at` on, beside what it was before."""

    series: Series
    at: int
    start: int  #: of the level before
    end: int  #: behind the level that begins
    before: float
    after: float
    p: float  #: 0 where no chance is involved
    way: Way

    @property
    def first(self) -> Point:
        """The first point after the change."""
        return self.series.points[self.at]

    @property
    def last(self) -> Point:
        """The last one before it."""
        return self.series.points[self.at - 1]

    @property
    def relative(self) -> float:
        """NaN where it was 0."""
        return self.after / self.before - 1 if self.before else math.nan

    @property
    def direction(self) -> Direction:
        better = self.first.better
        if better not in ("lower", "higher") or self.after == self.before:
            return "neither"
        return "better" if (self.after > self.before) == (better == "higher") else "worse"

    @property
    def ago(self) -> int:
        """Runs of the series since the change, the first one included."""
        return len(self.series.points) - self.at

    @property
    def beside(self) -> list[str]:
        """What else became different between the two runs: versions, the machine."""
        was, now = self.last.of, self.first.of
        packages = dict.fromkeys([*was.versions, *now.versions])
        found = [
            f"{name} {was.versions.get(name, 'none')} -> {now.versions.get(name, 'none')}"
            for name in packages
            if was.versions.get(name) != now.versions.get(name)
        ]
        if was.machine != now.machine:
            found.append(f"machine {_machine(was.machine)} -> {_machine(now.machine)}")
        return found


@dataclass(frozen=True)
class Drift:
    """All changes, in the order in which they began, and what could not be judged."""

    changes: list[Change] = field(default_factory=list)
    judged: int = 0  #: series
    short: list[Series] = field(default_factory=list)  #: with too few runs to tell
    #: values that were left out, since they are not finite
    not_finite: int = 0


def drift(history: History) -> Drift:
    """The changes in every series of a history.

    Absolute times are a family of their own, so that they, which follow the load of their machine,
    cost the others no power, and are judged more strictly.
    """
    changes: list[Change] = []
    short: list[Series] = []
    families: dict[bool, list[Series]] = {False: [], True: []}
    found = series(history)
    for one in found:
        way = _way(one)
        if way == "varying":
            enough = len(one.points) >= 2 * LEAST
            (families[one.absolute] if enough else short).append(one)
        elif len(one.points) < 2:
            short.append(one)
        else:
            changes += _steps(one, way)
    for absolute, family in families.items():
        changes += _shifts(family, ALPHA_ABSOLUTE if absolute else ALPHA)
    changes.sort(key=lambda change: (change.first.of.run.time, change.first.of.case))
    return Drift(changes, len(found) - len(short), short, sum(one.left_out for one in found))


def _way(one: Series) -> Way:
    if all(point.exact for point in one.points):
        return "exact"
    values = one.values
    same = sum(a == b for a, b in pairwise(values))
    return "repeating" if same and 2 * same >= len(values) - 1 else "varying"


# --- without chance ------------------------------------------------------------------------


def _steps(one: Series, way: Way) -> Iterator[Change]:
    """Each level as long as nothing differs from its first value."""
    places = [0]
    for at, point in enumerate(one.points):
        if _differs(one.points[places[-1]], point, way):
            places.append(at)
    places.append(len(one.points))
    for start, at, end in zip(places, places[1:], places[2:], strict=False):
        before, after = one.points[start].metric.value, one.points[at].metric.value
        yield Change(one, at, start, end, before, after, 0.0, way)


def _differs(was: Point, now: Point, way: Way) -> bool:
    old, new = was.metric, now.metric
    if way == "exact" or old.interval is None or new.interval is None:
        return new.value != old.value
    if old.interval.n != new.interval.n:
        return new.low > old.high or new.high < old.low
    return abs(new.value - old.value) >= LEAST_CHANGE * abs(old.value) and new.value != old.value


# --- by chance -----------------------------------------------------------------------------


def _shifts(family: Sequence[Series], alpha: float) -> Iterator[Change]:
    """The false discovery rate over the family is `alpha` (Benjamini and Hochberg, JRSS B 57, 1995,
    289-300), so in a family where nothing changed this is how often anything is found."""
    if not family:
        return
    from scipy.stats import false_discovery_control

    scaled = [_scaled(one) for one in family]
    ps = [min((p for _, p in change_points(x, alpha)), default=1.0) for x in scaled]
    level = max(
        (p for p, fdr in zip(ps, false_discovery_control(ps), strict=True) if fdr <= alpha),
        default=-1.0,
    )
    for one, x, p in zip(family, scaled, ps, strict=True):
        if p > level:
            continue
        points = change_points(x, level)
        places = [0, *(point.at for point in points), len(x)]
        means = [sum(x[a:b]) / (b - a) for a, b in pairwise(places)]
        levels = [math.exp(mean) if _positive(one) else mean for mean in means]
        for i, point in enumerate(points):
            start, end = places[i], places[i + 2]
            before, after = levels[i], levels[i + 1]
            if abs(after - before) >= LEAST_CHANGE * abs(before):
                yield Change(one, point.at, start, end, before, after, point.p, "varying")


def _scaled(one: Series) -> list[float]:
    """Logarithms of what is positive: its changes are relative ones."""
    return [math.log(x) for x in one.values] if _positive(one) else one.values


def _positive(one: Series) -> bool:
    return all(x > 0 for x in one.values)


def _machine(machine: tuple[str, str]) -> str:
    host, hardware = machine
    return f"{host} ({hardware})" if hardware else host
