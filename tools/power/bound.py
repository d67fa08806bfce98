"""How small a slowdown the spread between processes permits anyone to find."""

from __future__ import annotations

import math

from scipy import optimize, stats

ALARMS, POWER = 0.02, 0.8


def known(deviation: float, before: int, now: int) -> float:
    """With a deviation sigma of one launch's log ratio that is known beforehand, of the means of
    `before` and `now` launches: (z(0.98) + z(0.80)) sigma sqrt(1/before + 1/now), as a slowdown.
    Of tests of a normal mean none finds less (Neyman and Pearson)."""
    z = float(stats.norm.isf(ALARMS) + stats.norm.ppf(POWER))
    return math.expm1(z * deviation * math.sqrt(1 / before + 1 / now))


def student(deviation: float, before: int, now: int, freedom: int) -> float:
    """The same with a deviation that `freedom` degrees of freedom estimate: z + z gives way to the
    noncentrality at which a t-test at 2 % has a power of 80 %. Infinite without any freedom."""
    if freedom < 1:
        return math.inf
    limit = float(stats.t.isf(ALARMS, freedom))

    def short(d: float) -> float:
        return float(stats.nct.sf(limit, freedom, d)) - POWER

    d = float(optimize.brentq(short, 0, 4 * limit + 10))
    return math.expm1(d * deviation * math.sqrt(1 / before + 1 / now))
