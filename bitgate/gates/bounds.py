"""The bound that recorded observations call for, and the reason in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal

from bitgate.catalog import Case, Execution
from bitgate.metric import Metric, number, plural

Key = Literal["min", "max", "within"]


@dataclass(frozen=True)
class Observation:
    """A metric of a case in a run."""

    case: Case
    execution: Execution
    metric: Metric
    run: str


class NoBoundError(Exception):
    """Why nothing measured makes a bound."""


def proposed(found: Sequence[Observation], key: Key, margin: float) -> tuple[float, str]:
    """The bound that the worst of all observations calls for, and the reason in words.

    `max` and `min` are the value and `margin` half-widths of its interval, but never within the
    interval; `within` the relative distance to what was expected. All are rounded outwards, to two
    digits of the distance between measurement and bound. An exact value has no half-width.

    Raises:
        NoBoundError: if a value is not finite, or a `min` would not be above 0.
    """
    for one in found:
        if not one.metric.finite:
            raise NoBoundError(f"as it is not finite in {one.run}")
    if key == "within":
        return _within(found)
    sign = 1 if key == "max" else -1
    worst = max(found, key=lambda one: sign * _limit(one.metric, key, margin))
    metric = worst.metric
    distance = abs(_limit(metric, key, margin) - metric.value)
    end = metric.high if key == "max" else metric.low
    bound = _outward(_limit(metric, key, margin), distance, key, end)
    if metric.value > 0 >= bound:
        raise NoBoundError(f"as {margin:g} half-widths below {metric.text()} is not above 0")
    measured = f"{_which(worst, found)}{number(metric.value)} measured"
    if metric.interval is None:
        return bound, f"{measured}, exact, {_runs(found)}"
    interval = f"({number(metric.low)} to {number(metric.high)})"
    return bound, (
        f"{measured} {interval}, {_runs(found)}; bound = measured {'+' if sign > 0 else '-'} "
        f"{margin:g} half-widths"
    )


def _limit(metric: Metric, key: Key, margin: float) -> float:
    """Never within the interval, however small the margin."""
    reach = margin * (metric.high - metric.low) / 2
    if key == "max":
        return max(metric.value + reach, metric.high)
    return min(metric.value - reach, metric.low)


def _within(found: Sequence[Observation]) -> tuple[float, str]:
    worst = max(found, key=_deviation)
    deviation = _deviation(worst)
    if not math.isfinite(deviation):
        raise NoBoundError(f"as nothing was expected of it in {worst.run}")
    expected = worst.metric.expected
    assert expected is not None
    bound = _outward(deviation, deviation, "within", deviation)
    return bound, (
        f"{_which(worst, found)}{number(worst.metric.value, 7)} measured, "
        f"{number(expected, 7)} expected, {_runs(found)}"
    )


def _deviation(one: Observation) -> float:
    """The farthest end of the interval from what is expected, relative."""
    metric = one.metric
    if not metric.expected:
        return math.inf
    return max(abs(x / metric.expected - 1) for x in (metric.low, metric.high))


def _outward(bound: float, distance: float, key: Key, end: float) -> float:
    """Rounded away from what was measured, to two digits of the distance to it.

    Where only the arithmetic's own rounding errors would call for another step, none is made, if
    the `end` of the interval allows it: 2 - 3 * 0.1 is 1.7 and not 1.69.
    """
    if distance <= 1e-12 * abs(bound):  # an exact value, but for rounding
        return bound
    exact, unit = Decimal(bound), Decimal(1).scaleb(math.floor(math.log10(distance)) - 1)
    sign = -1 if key == "min" else 1
    nearest = exact.quantize(unit)
    short = sign * (exact - nearest) > Decimal(distance) * Decimal("1e-9")
    if short or sign * (Decimal(end) - nearest) > 0:
        nearest = exact.quantize(unit, ROUND_FLOOR if key == "min" else ROUND_CEILING)
    return float(nearest)


def _which(worst: Observation, found: Sequence[Observation]) -> str:
    cases = {one.case.key for one in found}
    return f"worst of {len(cases)} cases, {worst.case.id}: " if len(cases) > 1 else ""


def _runs(found: Sequence[Observation]) -> str:
    runs = len({one.run for one in found})
    return f"{runs} {plural('run', runs)}"
