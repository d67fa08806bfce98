"""Processes differ more than the steps within one do: intervals over fresh processes, and what a
spread between processes that was measured beforehand is worth to them.

All of it is about logarithms, so a standard deviation of 0.05 is 5 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitgate.statistics import Estimate, TooFewError, process_median

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Between:
    """The standard deviation over processes of a logarithm, and how well it is known.

    `launches` processes were seen to estimate it, so it has `launches` - 1 degrees of freedom;
    `source` says where it comes from, for a reader.
    """

    deviation: float
    launches: int
    source: str


@dataclass(frozen=True)
class Spread:
    """How much processes differ: in the paired ratio, and in absolute times.

    Without a `cpu_ratio`, that of the CPU clock, it is taken to be like the wall clock's.
    """

    ratio: Between
    seconds: Between
    cpu_ratio: Between | None = None


UNKNOWN = "assumed: run bitgate calibrate"
#: where nobody has measured it. Paired ratios were seen to differ by 5 to 10 %, absolute times by
#: 45 % (docs/decisions/0004-speed.md); an assumption counts no more than five launches would
ASSUMED = Spread(Between(0.05, 5, UNKNOWN), Between(0.45, 5, UNKNOWN))


#: the level at which an interval is a standard error to either side
ONE_SIGMA = math.erf(1 / math.sqrt(2))


def over_processes(
    log_values: ArrayLike, launch: ArrayLike, between: Between, level: float
) -> Estimate:
    """The mean over processes of each one's median, of shape (n,) each: `launch[i]` says which
    process step i was timed in. At least 6 steps of each; one process is enough.

    The median y of a process varies for two reasons: processes differ, and its own steps do. With
    one process, its variance is known from elsewhere: between² + w², w being the standard error of
    the median within the process (`statistics.process_median`, whose interval this is). N
    processes show their variance s² themselves, with N - 1 degrees of freedom; what is known from
    elsewhere, with v of them, is pooled with it,

        S² = (v (between² + w²) + (N - 1) s²) / (v + N - 1),    mean ± t(v + N - 1) S / sqrt(N),

    the classic pooled variance (Snedecor and Cochran, Statistical Methods, 1989, chapter 6), also
    the posterior under a scaled inverse chi-squared prior (Gelman et al., Bayesian Data Analysis,
    2013, section 3.3). It is exact if processes here differ as much as those it was measured on. In
    case they differ more, S² is never taken below s²: at twice the deviation, 98 % intervals of 3,
    5 and 8 processes still cover 93, 95 and 97 % instead of 87, 90 and 93 %.

    The logarithm is what is summed up; `.exp()` of the result is the ratio.

    Raises:
        TooFewError: for fewer than 6 steps in a process.
    """
    import numpy as np
    from scipy import stats

    x, number = np.asarray(log_values, float), np.asarray(launch)
    steps = [x[number == one] for one in np.unique(number)]
    medians = np.array([float(np.median(values)) for values in steps])
    n, value = len(medians), float(medians.mean())
    how = f"{between.deviation:.1%} between processes ({between.source})".replace("%", " %")
    if n == 1:
        method = f"median of {len(steps[0])} steps widened by {how}"
    else:
        method = f"Student t, its spread pooled with {how}"
    if not np.isfinite(x).all():
        return Estimate(value, math.nan, math.nan, n, method)
    within = float(np.mean([_error_of_median(values) ** 2 for values in steps]))
    known, own = between.launches - 1, n - 1
    variance = float(medians.var(ddof=1)) if own else 0.0
    pooled = (known * (between.deviation**2 + within) + own * variance) / (known + own)
    quantile = float(stats.t.isf((1 - level) / 2, known + own))
    half = quantile * math.sqrt(max(pooled, variance) / n)
    return Estimate(value, value - half, value + half, n, method)


def _error_of_median(values: np.ndarray) -> float:
    """Standard error of one process' median: without a spread, the interval is ± z times it."""
    estimate = process_median(values, 0.0, ONE_SIGMA)
    return (estimate.high - estimate.low) / 2


def deviation_over(log_values: ArrayLike, launch: ArrayLike) -> float:
    """The standard deviation over processes of each one's median; shapes as in `over_processes`.

    Raises:
        TooFewError: for fewer than two processes.
    """
    import numpy as np

    x, number = np.asarray(log_values, float), np.asarray(launch)
    medians = [np.median(x[number == one]) for one in np.unique(number)]
    if len(medians) < 2:
        raise TooFewError("a spread between processes needs at least 2 of them")
    return float(np.std(medians, ddof=1))


def deviation_interval(between: Between, level: float = 0.98) -> tuple[float, float]:
    """How well the deviation is known: [s sqrt(v / chi²(1 - a/2)), s sqrt(v / chi²(a/2))], v being
    launches - 1."""
    from scipy import stats

    freedom, tail = between.launches - 1, (1 - level) / 2
    low, high = (freedom / float(stats.chi2.isf(p, freedom)) for p in (tail, 1 - tail))
    return between.deviation * math.sqrt(low), between.deviation * math.sqrt(high)


MOST_LAUNCHES = 1000


def launches_needed(
    between: Between, slowdown: float, *, level: float = 0.98, power: float = 0.8
) -> int | None:
    """How many launches show with `power` that something is slower than a bound allows, if it is
    by `slowdown` (0.05 is 5 %) and processes differ as `between` says; None if more than
    MOST_LAUNCHES."""
    distance = -math.log1p(-slowdown) / between.deviation
    for n in range(1, MOST_LAUNCHES + 1):
        if _power(n, between.launches - 1, distance, level) >= power:
            return n
    return None


def _power(n: int, known: int, distance: float, level: float) -> float:
    """How often the interval of `over_processes` lies wholly beyond a bound that is `distance`
    standard deviations away: the mean, over equally likely values of s², of how often the mean of
    n values does."""
    import numpy as np
    from scipy import stats

    own = n - 1
    likely = (np.arange(200) + 0.5) / 200
    variance = stats.chi2.ppf(likely, own) / own if own else np.zeros(1)
    pooled = (known + own * variance) / (known + own)
    half = stats.t.isf((1 - level) / 2, known + own) * np.sqrt(np.maximum(pooled, variance))
    return float(stats.norm.sf(half - distance * math.sqrt(n)).mean())
