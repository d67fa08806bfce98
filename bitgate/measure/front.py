"""The widths on the way from the finest plan to the cheapest: what each costs, and what it harms.

Harms are taken to add up, as in HAWQ-V3 (Yao et al., ICML 2021): of layers quantized one at a time,
the sum predicts that of all together. Then the best plans are those that spend each unit of cost
where it avoids most harm. They are found by walking down the lower convex hull of each unit's
(cost, harm), the step with the least harm per cost saved first: bit allocation by Lagrange
multipliers (Shoham and Gersho, IEEE Trans. ASSP 36, 1988, 1445-1453). Between two points of the
walk there may be plans as good, none better than the line between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple


class Option(NamedTuple):
    """What a unit of layers may get; the head, nothing: `bits` None."""

    bits: int | None
    cost: float
    harm: float


class Point(NamedTuple):
    """A plan on the front, by unit."""

    bits: Mapping[str, int | None]
    cost: float
    harm: float


def front(options: Mapping[str, Sequence[Option]]) -> list[Point]:
    """All points of the walk, from the least harm to the least cost; `options` by unit.

    Raises:
        ValueError: if a unit has no options.
    """
    hulls = {unit: hull(found) for unit, found in options.items()}
    steps = sorted(
        (_slope(before, after), number, unit, after)
        for unit, points in hulls.items()
        for number, (before, after) in enumerate(pairwise(points))
    )
    now = {unit: points[0] for unit, points in hulls.items()}
    walked = [_point(now)]
    for _, _, unit, after in steps:
        now[unit] = after
        walked.append(_point(now))
    return walked


def hull(options: Sequence[Option]) -> list[Option]:
    """Those on the lower convex hull, from the least harm to the least cost."""
    if not options:
        raise ValueError("a unit without options")
    found: list[Option] = []
    for option in sorted(options, key=lambda option: (option.harm, option.cost)):
        if found and option.cost >= found[-1].cost:
            continue  # neither cheaper nor less harmful
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-1], option):
            found.pop()
        found.append(option)
    return found


def _slope(before: Option, after: Option) -> float:
    """Harm for each unit of cost saved."""
    return (after.harm - before.harm) / (before.cost - after.cost)


def _point(now: Mapping[str, Option]) -> Point:
    return Point(
        {unit: option.bits for unit, option in now.items()},
        sum(option.cost for option in now.values()),
        sum(option.harm for option in now.values()),
    )
