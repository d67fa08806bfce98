"""Intervals, and decisions in three ways from them. scipy does the maths; what it lacks is here.

Every interval is two-sided: at `level` 0.98 it misses by 1 % on each side. Observations that are
not finite make a NaN interval rather than an error, so that a gate can say what is wrong.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Outcome = Literal["pass", "fail", "inconclusive"]

#: resamples that must lie beyond each limit of a bootstrap interval for it to be steady
_BEYOND = 20
#: a bound on time: past it a limit is the most extreme resample, and all looks that reach so far
#: share less than 0.1 % of error between them
_MOST_RESAMPLES = 64_000
#: numbers drawn at once, a bound on memory (32 MiB)
_CHUNK = 2**22


class TooFewError(ValueError):
    """There are fewer observations than an interval at this level needs."""


class Estimate(NamedTuple):
    """A value with its interval; `n` counts the independent units behind it."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def exp(self) -> Estimate:
        """The ratio whose logarithm this is: value and limits exponentiated."""
        return self._replace(value=_exp(self.value), low=_exp(self.low), high=_exp(self.high))


# --- decisions -----------------------------------------------------------------------------


def three_way(
    low: float, high: float, minimum: float | None = None, maximum: float | None = None
) -> Outcome:
    """`fail` if the interval is wholly beyond a bound, `pass` if no part of it is beyond any.

    A bound itself is not beyond. NaN is never decided: who knows of it must ask beforehand.
    """
    floor = -math.inf if minimum is None else minimum
    ceiling = math.inf if maximum is None else maximum
    if high < floor or low > ceiling:
        return "fail"
    if floor <= low and high <= ceiling:
        return "pass"
    return "inconclusive"


def spent(look: int, alpha: float, *, last: bool = False) -> float:
    """The error that look number `look` (1, 2, ...) may spend: `alpha` / 2**look.

    The last look spends all that is left, `alpha` / 2**(look - 1): as much as all looks that do
    not come would have. Over any number of looks the sum is at most `alpha`, so by the union
    bound their intervals together cover at least as often as `1 - alpha`, however they depend on
    each other. That holds if it is not the values seen that make a look the last one, but the end
    of the data or of the time; to stop because all is decided is no such end.
    """
    if look < 1:
        raise ValueError(f"looks are counted from 1, got {look}")
    return float(alpha * 2.0 ** (1 - look if last else -look))


# --- means ---------------------------------------------------------------------------------


def student_t(values: ArrayLike, level: float) -> Estimate:
    """Student's t interval of the mean of independent values of shape (n,), n >= 2.

    For log ratios paired by window, `student_t(log_ratios, level).exp()` is the ratio.

    Raises:
        TooFewError: for fewer than two values.
    """
    x = _column(values, 2)
    n, mean = len(x), float(x.mean())
    half = _t_quantile(level, n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, "Student t")


def bootstrap_t(
    values: ArrayLike, level: float, *, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """Bootstrap-t interval of the mean of independent, possibly skewed values of shape (n,).

    With t* = (mean* - mean) / se* over the resamples, the interval is
    [mean - q(1 - a/2) se, mean - q(a/2) se], q being quantiles of t* (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, section 12.5). It follows the skew of the data, which
    Student's t ignores; below about 32 values it is unsteady. A level so strict that `resamples`
    say too little about its tails gets more of them.

    A resample that drew one value n times has no standard error, and t* is infinite. Where so
    many of them are that they would make a limit infinite (nearly all values are equal), the
    limit is Student's t or the most extreme finite t*, whichever is wider.

    Raises:
        TooFewError: for fewer than two values.
    """
    import numpy as np

    x = _column(values, 2)
    n, mean = len(x), float(x.mean())
    if not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, n, "bootstrap-t")
    if np.ptp(x) == 0:
        return Estimate(mean, mean, mean, n, "bootstrap-t")
    tail = (1 - level) / 2
    count = max(resamples, min(math.ceil(_BEYOND / tail), _MOST_RESAMPLES))
    t = _studentized(x - mean, count, np.random.default_rng(seed))
    finite = t[np.isfinite(t)]
    student = _t_quantile(level, n - 1)
    least = float(np.quantile(t, tail, method="lower"))
    most = float(np.quantile(t, 1 - tail, method="higher"))
    if math.isinf(least):
        least = min(-student, float(finite.min(initial=0)))
    if math.isinf(most):
        most = max(student, float(finite.max(initial=0)))
    error = float(x.std(ddof=1)) / math.sqrt(n)
    return Estimate(
        mean, mean - max(most, 0) * error, mean - min(least, 0) * error, n, "bootstrap-t"
    )


def _studentized(
    centred: NDArray[np.float64], count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """t* of `count` resamples of values whose mean is zero; infinite where se* is zero."""
    import numpy as np

    n = len(centred)
    # Equal values have a variance of rounding errors, not of zero.
    rounding = 1e-12 * float(np.abs(centred).max())
    out = np.empty(count)
    step = max(1, _CHUNK // n)
    for start in range(0, count, step):
        drawn = centred[rng.integers(0, n, (min(step, count - start), n))]
        mean, deviation = drawn.mean(axis=1), drawn.std(axis=1, ddof=1)
        flat = deviation <= rounding
        error = np.where(flat, 1.0, deviation) / math.sqrt(n)
        out[start : start + step] = np.where(flat, np.copysign(np.inf, mean), mean / error)
    return out


# --- proportions ---------------------------------------------------------------------------


def wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion seen in `n` independent trials, n > 0.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) (Wilson, JASA 22, 1927, 209-212). It is
    written out because `n` need not be whole here, as scipy's `binomtest` demands.
    """
    z = _z_quantile(level)
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    low, high = (centre - half) / scale, (centre + half) / scale
    # Exact at the ends, where rounding would leave the share itself just outside.
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def clustered_wilson(counts: ArrayLike, sizes: ArrayLike, level: float) -> Estimate:
    """Wilson's interval of sum(counts) / sum(sizes), at an effective n: trials come in clusters.

    `counts` and `sizes`, both of shape (k,), k >= 2: of the `sizes[i]` tokens of window i,
    `counts[i]` agree. Tokens of one window are alike, so they tell less than as many independent
    ones: by the design effect, the linearized variance of the ratio,
    k/(k-1) sum((counts - p sizes)²) / sum(sizes)², over the binomial p(1-p)/n (Kish, Survey
    Sampling, 1965; Rao and Scott, Biometrics 48, 1992, 577-585). It is never taken below 1, and
    as 1 where all or none agree. Since it is itself estimated from k windows, the effective n is
    scaled by (z / t(k-1))² (Korn and Graubard, Survey Methodology 24, 1998, 193-201). Wilson's
    interval at that n covers well in clustered samples (Dean and Pagano, J. Survey Statistics and
    Methodology 3, 2015, 484-503).

    Raises:
        TooFewError: for fewer than two windows.
        ValueError: if shapes differ, a window is empty, or more agree than there are.
    """
    x, m = _column(counts, 2), _column(sizes, 2)
    if x.shape != m.shape:
        raise ValueError(f"{len(x)} counts for {len(m)} window sizes")
    if (m <= 0).any() or (x < 0).any() or (x > m).any():
        raise ValueError("counts must lie between 0 and their window's size, which is not 0")
    k, n = len(x), float(m.sum())
    share = float(x.sum()) / n
    if not math.isfinite(share):
        return Estimate(share, math.nan, math.nan, k, "Wilson")
    effect = 1.0
    if 0 < share < 1:
        variance = k / (k - 1) * float(((x - share * m) ** 2).sum()) / n**2
        effect = max(1.0, variance * n / (share * (1 - share)))
    effective = n / effect * (_z_quantile(level) / _t_quantile(level, k - 1)) ** 2
    low, high = wilson(share, effective, level)
    return Estimate(share, low, high, k, f"Wilson at effective n {effective:.0f}")


# --- medians -------------------------------------------------------------------------------


def median_interval(values: ArrayLike, level: float) -> Estimate:
    """The median of independent values of shape (n,), between two of their order statistics.

    The sign test inverted: [x(j), x(n+1-j)] with the largest j for which a Binomial(n, 1/2) falls
    below j with at most half the error, so the coverage is exact or better whatever the
    distribution (David and Nagaraja, Order Statistics, 2003, section 7.1).

    Raises:
        TooFewError: if not even all n values reach the level; 98 % needs 7, 99 % needs 8.
    """
    import numpy as np

    x = _column(values, 1)
    n, median = len(x), float(np.median(x))
    if not np.isfinite(x).all():
        return Estimate(median, math.nan, math.nan, n, "sign test")
    x.sort()
    j = _lower_rank(n, level)
    return Estimate(median, float(x[j - 1]), float(x[n - j]), n, "sign test")


def process_median(
    log_ratios: ArrayLike, between: float, level: float, *, processes: int | None = None
) -> Estimate:
    """The median of one process' paired log ratios of shape (n,), widened for other processes.

    Steps of one process agree better with each other than with those of the next one, so with a
    single process the interval is median ± q sqrt(se² + between²):

    - se is the standard error of the median within the process, from its 95 % sign-test interval:
      (high - low) / 2z, z at the exact coverage of that interval (McKean and Schrader,
      Communications in Statistics B 13, 1984, 751-773);
    - `between` is the standard deviation over processes of the log ratio, as calibrated for this
      hardware (0.05 is 5 %);
    - q is Student's quantile with `processes` - 1 degrees of freedom if `between` was estimated
      from that many processes, else the normal one.

    `n` of the result is 1, the process. `.exp()` of it is the ratio.

    Raises:
        TooFewError: for fewer than 6 steps, or if `processes` is below 2.
        ValueError: if `between` is negative.
    """
    import numpy as np

    if between < 0:
        raise ValueError(f"a standard deviation cannot be negative, got {between}")
    if processes is not None and processes < 2:
        raise TooFewError("a spread between processes needs at least 2 of them")
    x = _column(log_ratios, 1)
    n, median = len(x), float(np.median(x))
    method = f"median of {n} steps widened by {between:.1%} between processes".replace("%", " %")
    if not np.isfinite(x).all():
        return Estimate(median, math.nan, math.nan, 1, method)
    x.sort()
    j = _lower_rank(n, 0.95)
    within = float(x[n - j] - x[j - 1]) / (2 * _exact_z(n, j))
    q = _z_quantile(level) if processes is None else _t_quantile(level, processes - 1)
    half = q * math.hypot(within, between)
    return Estimate(median, median - half, median + half, 1, method)


@cache
def _exact_z(n: int, j: int) -> float:
    """The normal quantile of how often the j-th smallest and j-th largest enclose the median."""
    from scipy import stats

    return float(stats.norm.isf(stats.binom.cdf(j - 1, n, 0.5)))


@cache
def _lower_rank(n: int, level: float) -> int:
    """The rank j >= 1 such that the j-th smallest and j-th largest of n enclose the median."""
    from scipy import stats

    j = int(stats.binom.ppf((1 - level) / 2, n, 0.5))
    if j < 1:
        raise TooFewError(f"{n} values are too few for a {100 * level:g} % interval of the median")
    return j


# --- shared --------------------------------------------------------------------------------


def _column(values: ArrayLike, least: int) -> NDArray[np.float64]:
    """A copy of shape (n,) in float64; all NaN as soon as one value is not finite."""
    import numpy as np

    x = np.array(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"expected a list of numbers, got shape {x.shape}")
    if len(x) < least:
        raise TooFewError(f"{len(x)} values, at least {least} are needed")
    if not np.isfinite(x).all():
        x[:] = np.nan  # an infinity would raise warnings on its way to the same result
    return x


@cache
def _t_quantile(level: float, freedom: int) -> float:
    from scipy import stats

    return float(stats.t.isf((1 - level) / 2, freedom))


@cache
def _z_quantile(level: float) -> float:
    from scipy import stats

    return float(stats.norm.isf((1 - level) / 2))


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
