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


#: values of which `skewed_t` and `clustered_share` have an interval
LEAST_SKEWED = 3
#: the skewness of a long-tailed population over that of 32 to 64 values of it, by and large
UNSEEN = 1.3


def skewed_t(values: ArrayLike, level: float, *, unseen: float = UNSEEN) -> Estimate:
    """Interval of the mean of independent, possibly skewed values of shape (n,), n >= 3.

    On each side the wider of two: Student's t, which misses too often on the side of a long tail,
    and Hall's, which corrects for it. With t the studentized mean, s its standard error and g the
    skewness over sqrt(n), T = t + g t²/3 + g² t³/27 + g/6 is normal to the order 1/n (Hall, JRSS B
    54, 1992, 221-228); inverted at Student's quantiles instead of normal ones, the interval is
    [mean - s t(q), mean - s t(-q)] with t(T) = 3/g (cbrt(1 + g (T - g/6)) - 1). Alone it misses too
    often where tails are heavy on both sides. How often each covers: docs/verdicts.md.

    Raises:
        TooFewError: for fewer than three values.
    """
    x = _column(values, LEAST_SKEWED)
    plain = student_t(x, level)
    n, mean, deviation = len(x), plain.value, float(x.std(ddof=1))
    # Equal values have a deviation of rounding errors, not of zero.
    if not deviation > 1e-14 * abs(mean):
        return plain._replace(method=_SKEWED)
    error = deviation / math.sqrt(n)
    # of a sample adjusted for bias: G1 of Joanes and Gill, The Statistician 47, 1998, 183-189
    skewness = n / ((n - 1) * (n - 2)) * float((((x - mean) / deviation) ** 3).sum())
    g, quantile = unseen * skewness / math.sqrt(n), _t_quantile(level, n - 1)
    low = mean - error * _unskewed(quantile, g)
    high = mean - error * _unskewed(-quantile, g)
    return Estimate(mean, min(plain.low, low), max(plain.high, high), n, _SKEWED)


_SKEWED = "skew-corrected t"


def _unskewed(transformed: float, g: float) -> float:
    """t(T) of `skewed_t`, written so that g may be 0."""
    argument = g * (transformed - g / 6)
    root = math.cbrt(1 + argument)
    return 3 * (transformed - g / 6) / (root * root + root + 1)


def linearized(sums: ArrayLike, sizes: ArrayLike) -> NDArray[np.float64]:
    """What windows of different sizes tell of sum(sums) / sum(sizes), one value of each.

    With r that ratio, the values are r + (sums - r sizes) / mean size, all of shape (n,): their
    mean is r, and their variance over n the linearized one of the ratio (Cochran, Sampling
    Techniques, 1977, section 6.3). So an interval of their mean is one of the ratio; where all
    sizes are equal they are sums / sizes.

    Raises:
        ValueError: if shapes differ.
    """
    x, m = _column(sums, 1), _column(sizes, 1)
    if x.shape != m.shape:
        raise ValueError(f"{len(x)} sums for {len(m)} window sizes")
    ratio = x.sum() / m.sum()
    values: NDArray[np.float64] = ratio + (x - ratio * m) / m.mean()
    return values


def ratio_of_means(above: ArrayLike, below: ArrayLike, level: float) -> Estimate:
    """Interval of mean(above) / mean(below), both of shape (n,) and paired, n >= 3.

    On each side the wider of two:

    - Fieller's: all r for which Student's t does not tell the mean of above - r below from 0, with
      x, y the means and v the variances and covariance of these, the r between the roots of
      (y² - t² v_yy) r² - 2 (x y - t² v_xy) r + x² - t² v_xx (Fieller, JRSS B 16, 1954, 175-185);
      it knows that the denominator is uncertain as well, and is unbounded where that may be 0;
    - `skewed_t` of the `linearized` values, which knows of long tails.

    Raises:
        TooFewError: for fewer than three pairs.
        ValueError: if shapes differ.
    """
    import numpy as np

    x, y = _column(above, LEAST_SKEWED), _column(below, LEAST_SKEWED)
    if x.shape != y.shape:
        raise ValueError(f"{len(x)} values over {len(y)}")
    n, value = len(x), _over(float(x.mean()), float(y.mean()))
    if not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n, _FIELLER)
    t = _t_quantile(level, n - 1)
    v = t * t * np.cov(x, y) / n
    a, b = float(y.mean() ** 2 - v[1, 1]), float(x.mean() * y.mean() - v[0, 1])
    c = float(x.mean() ** 2 - v[0, 0])
    if a <= 0:
        return Estimate(value, -math.inf, math.inf, n, _FIELLER)
    half = math.sqrt(max(b * b - a * c, 0.0)) / a
    skewed = skewed_t(linearized(x, y), level)
    low, high = min(b / a - half, skewed.low), max(b / a + half, skewed.high)
    return Estimate(value, min(low, value), max(high, value), n, _FIELLER)


_FIELLER = "Fieller and skew-corrected t"


def _over(above: float, below: float) -> float:
    return above / below if below else math.nan


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


def clustered_share(counts: ArrayLike, sizes: ArrayLike, level: float) -> Estimate:
    """Interval of sum(counts) / sum(sizes), where trials come in clusters.

    `counts` and `sizes`, both of shape (k,), k >= 3: of the `sizes[i]` tokens of window i,
    `counts[i]` agree. Tokens of one window are alike, so they tell less than as many independent
    ones. On each side the wider of two, within 0 and 1:

    - Wilson's at an effective n (`clustered_wilson`), which knows that counts are discrete;
    - `skewed_t` of the `linearized` counts, which knows that few windows may hold most of what is
      rare; its tail ends where all tokens of a window miss, so the skewness is taken as it is.

    Neither covers alone: docs/verdicts.md.

    Raises:
        TooFewError: for fewer than three windows.
        ValueError: if shapes differ, a window is empty, or more agree than there are.
    """
    wilsons = clustered_wilson(counts, sizes, level)
    if not math.isfinite(wilsons.value):
        return wilsons
    skewed = skewed_t(linearized(counts, sizes), level, unseen=1.0)
    if wilsons.low <= skewed.low and skewed.high <= wilsons.high:
        return wilsons
    return wilsons._replace(
        low=max(0.0, min(wilsons.low, skewed.low)),
        high=min(1.0, max(wilsons.high, skewed.high)),
        method=f"{wilsons.method} and {_SKEWED}",
    )


def clustered_wilson(counts: ArrayLike, sizes: ArrayLike, level: float) -> Estimate:
    """Wilson's interval of sum(counts) / sum(sizes), at the effective n of clustered trials.

    Shapes and errors are those of `clustered_share`; two windows are enough. The effective n
    comes from the design effect, the linearized variance of the ratio,
    k/(k-1) sum((counts - p sizes)²) / sum(sizes)², over the binomial p(1-p)/n (Kish, Survey
    Sampling, 1965; Rao and Scott, Biometrics 48, 1992, 577-585). It is never taken below 1, and
    as 1 where all or none agree. Since it is itself estimated from k windows, the effective n is
    scaled by (z / t(k-1))² (Korn and Graubard, Survey Methodology 24, 1998, 193-201; Dean and
    Pagano, J. Survey Statistics and Methodology 3, 2015, 484-503).
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


def paired_difference(gained: int, lost: int, n: int, level: float) -> Estimate:
    """Tango's score interval of the difference of two accuracies on the same `n` items.

    The first model is right and the second wrong on `gained` items, the other way round on
    `lost`; the difference is (gained - lost) / n. The interval holds all differences d that

        z(d) = (gained - lost - n d) / sqrt(n (2 q + d (1 - d)))

    does not reject, q being the likeliest share of lost items if the difference is d (Tango,
    Statistics in Medicine 17, 1998, 891-908): the larger root of A q² + B q + C with A = 2n,
    B = (2n - gained + lost) d - gained - lost, C = -lost d (1 - d).

    Raises:
        ValueError: unless 0 <= gained, 0 <= lost, gained + lost <= n and 0 < n.
    """
    if n <= 0 or min(gained, lost) < 0 or gained + lost > n:
        raise ValueError(f"{gained} items gained and {lost} lost of {n} cannot be")
    z = _z_quantile(level)
    high = _tango_limit(gained, lost, n, z)
    low = -_tango_limit(lost, gained, n, z)  # the models change places
    return Estimate((gained - lost) / n, low, high, n, "Tango's score")


def _tango_limit(gained: int, lost: int, n: int, z: float) -> float:
    """The largest difference that a score test does not reject."""
    from scipy import optimize

    def score(d: float) -> float:
        """z(d) + z, times the standard error, which is 0 at most at the ends."""
        b = (2 * n - gained + lost) * d - gained - lost
        root = math.sqrt(max(b * b + 8 * n * lost * d * (1 - d), 0.0))
        variance = (root - b) / (2 * n) + d * (1 - d)
        return gained - lost - n * d + z * math.sqrt(n * max(variance, 0.0))

    value = (gained - lost) / n
    if score(1.0) >= 0:
        return 1.0
    # the estimate itself is a root too if its variance is 0: all items gained, all lost, or none
    return float(optimize.brentq(score, value + 1e-9 * (1 - value), 1.0, xtol=1e-12))


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
