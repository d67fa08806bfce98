"""Intervals against scipy, published values, and simulations of how often they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitgate.statistics import (
    Estimate,
    TooFewError,
    clustered_share,
    clustered_wilson,
    median_interval,
    paired_difference,
    process_median,
    ratio_of_means,
    skewed_t,
    student_t,
    three_way,
    wilson,
)

numbers = st.floats(-1e6, 1e6)
columns = st.lists(numbers, min_size=2, max_size=40)


# --- decisions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "minimum", "maximum", "outcome"),
    [
        (1.0, 2.0, None, None, "pass"),
        (1.0, 2.0, 1.0, 2.0, "pass"),  # a bound itself is not beyond
        (1.0, 2.0, 2.0, None, "inconclusive"),
        (1.0, 2.0, None, 1.0, "inconclusive"),
        (1.0, 2.0, 2.1, None, "fail"),
        (1.0, 2.0, None, 0.9, "fail"),
        (1.0, 2.0, 1.5, 1.6, "inconclusive"),
        (1.0, 1.0, 1.0, 1.0, "pass"),
        (math.nan, math.nan, None, 1.0, "inconclusive"),
    ],
)
def test_three_way(
    low: float, high: float, minimum: float | None, maximum: float | None, outcome: str
) -> None:
    assert three_way(low, high, minimum, maximum) == outcome


@given(st.lists(numbers, min_size=2, max_size=2), numbers, numbers, st.floats(0, 1e6))
def test_a_narrower_interval_never_reverses_a_decision(
    ends: list[float], minimum: float, maximum: float, cut: float
) -> None:
    low, high = sorted(ends)
    wide = three_way(low, high, minimum, maximum)
    narrow = three_way(low, max(low, high - cut), minimum, maximum)
    assert wide in (narrow, "inconclusive")


@given(st.lists(numbers, min_size=2, max_size=2), numbers)
def test_minimum_and_maximum_mirror_each_other(ends: list[float], bound: float) -> None:
    low, high = sorted(ends)
    assert three_way(low, high, minimum=bound) == three_way(-high, -low, maximum=-bound)


# --- means ---------------------------------------------------------------------------------


@given(columns, st.floats(0.5, 0.999))
def test_student_t_is_scipys(values: list[float], level: float) -> None:
    ours = student_t(values, level)
    if np.std(values) > 1e-6:
        theirs = stats.ttest_1samp(values, 0).confidence_interval(level)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert ours.low <= ours.value <= ours.high
    assert (ours.n, ours.method) == (len(values), "Student t")


def test_the_exponential_of_a_log_ratio_is_the_ratio() -> None:
    log = student_t(np.log([1.1, 1.2, 1.3]), 0.98)
    ratio = log.exp()
    assert ratio.value == pytest.approx((1.1 * 1.2 * 1.3) ** (1 / 3))
    assert (ratio.low, ratio.high) == (math.exp(log.low), math.exp(log.high))
    assert Estimate(0, -1000, 1000, 2, "").exp()[:3] == (1, 0, math.inf)


def test_the_skewed_interval_inverts_halls_transformation() -> None:
    x = np.random.default_rng(5).lognormal(0, 0.8, 40)
    ours, n = skewed_t(x, 0.98), len(x)
    error, quantile = x.std(ddof=1) / math.sqrt(n), stats.t.ppf(0.99, n - 1)
    g = 1.3 * stats.skew(x, bias=False) / math.sqrt(n)

    def transformed(mean: float) -> float:
        t = (x.mean() - mean) / error
        return t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6

    # a long tail above: that side is Hall's, the other one Student's
    assert transformed(ours.high) == pytest.approx(-quantile)
    assert ours.low == pytest.approx(x.mean() - quantile * error)
    assert transformed(ours.low) > quantile  # where Hall's limit would have been
    assert (ours.n, ours.method) == (40, "skew-corrected t")


def test_without_skew_it_is_students() -> None:
    x = [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert skewed_t(x, 0.98)[:3] == pytest.approx(student_t(x, 0.98)[:3])


def test_it_is_close_to_scipys_bootstrap_of_skewed_data() -> None:
    x = np.random.default_rng(6).gamma(4, 1, 400)
    theirs = stats.bootstrap((x,), np.mean, confidence_level=0.98, method="BCa", rng=0)
    ours, low, high = skewed_t(x, 0.98), *theirs.confidence_interval
    width = high - low
    assert ours.high == pytest.approx(high, abs=0.05 * width)
    assert ours.low == pytest.approx(low, abs=0.1 * width)  # Student's there, which is wider


@given(columns.filter(lambda x: len(x) > 2), st.floats(0.5, 0.9999), st.floats(0.5, 0.9999))
def test_the_skewed_interval_holds_students_and_grows_with_the_level(
    values: list[float], one: float, other: float
) -> None:
    narrow, wide = (skewed_t(values, level) for level in sorted((one, other)))
    student = student_t(values, min(one, other))
    assert narrow.low <= student.low <= narrow.value <= student.high <= narrow.high
    assert all(math.isfinite(x) for x in wide[:3])
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@given(
    st.lists(st.integers(-1000, 1000), min_size=3, max_size=40),
    st.sampled_from([-4.0, -0.5, 0.25, 8.0]),
    st.integers(-1000, 1000),
)
def test_the_skewed_interval_goes_along_with_scale_and_shift(
    values: list[int], scale: float, shift: int
) -> None:
    x = np.array(values, float)
    before, after = skewed_t(x, 0.98), skewed_t(scale * x + shift, 0.98)
    ends = sorted((scale * before.low + shift, scale * before.high + shift))
    assert (after.low, after.high) == pytest.approx(tuple(ends), abs=1e-6)


def test_values_that_are_all_alike_have_an_interval_of_no_width() -> None:
    assert skewed_t([0.1] * 32, 0.98)[:3] == pytest.approx((0.1, 0.1, 0.1), abs=1e-15)
    rare = skewed_t([0.0] * 31 + [1.0], 0.98)
    assert rare.high > 3 * student_t([0.0] * 31 + [1.0], 0.98).high / 2


# --- proportions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3, at 95 %
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes / n, n, 0.95) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(trials: tuple[int, int]) -> None:
    k, n = trials
    theirs = stats.binomtest(k, n).proportion_ci(0.98, "wilson")
    assert wilson(k / n, n, 0.98) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_clustering_widens_wilsons_interval() -> None:
    sizes = [100] * 32
    even, uneven = [90] * 32, [100, 80] * 16
    alike, apart = clustered_wilson(even, sizes, 0.98), clustered_wilson(uneven, sizes, 0.98)
    assert alike.value == apart.value == 0.9
    assert apart.low < alike.low < 0.9 < alike.high < apart.high
    # Variance 32/31 * 32 * 10² / 3200² over 0.09 / 3200 is a design effect of 11.47.
    ratio = stats.norm.ppf(0.99) / stats.t.ppf(0.99, 31)
    assert apart.method == f"Wilson at effective n {3200 / 11.47 * ratio**2:.0f}"


def test_windows_more_alike_than_chance_count_as_independent_tokens() -> None:
    n = 3200 * (stats.norm.ppf(0.99) / stats.t.ppf(0.99, 31)) ** 2
    ours = clustered_wilson([90] * 32, [100] * 32, 0.98)
    assert ours[1:3] == pytest.approx(wilson(0.9, n, 0.98))


@pytest.mark.parametrize("share", [0, 1])
def test_wilson_where_all_or_none_agree(share: int) -> None:
    ours = clustered_wilson([100 * share] * 32, [100] * 32, 0.98)
    assert ours.value == share
    assert 0 <= ours.low <= share <= ours.high <= 1
    assert 0.001 < ours.high - ours.low < 0.005


@given(
    st.lists(
        st.integers(1, 300).flatmap(lambda m: st.tuples(st.integers(0, m), st.just(m))),
        min_size=3,
        max_size=40,
    )
)
def test_intervals_of_shares_contain_their_estimate_within_zero_and_one(
    windows: list[tuple[int, int]],
) -> None:
    counts, sizes = zip(*windows, strict=True)
    wilsons, ours = (of(counts, sizes, 0.98) for of in (clustered_wilson, clustered_share))
    assert 0 <= ours.low <= wilsons.low <= ours.value <= wilsons.high <= ours.high <= 1
    assert ours.n == len(windows)
    missed = clustered_share(np.subtract(sizes, counts), sizes, 0.98)
    assert (1 - missed.high, 1 - missed.low) == pytest.approx((ours.low, ours.high), abs=1e-9)


def test_what_is_rare_and_sits_in_few_windows_widens_the_share() -> None:
    # 40 misses, in four windows or in all of them
    together, apart = [100] * 28 + [90] * 4, [99] * 24 + [98] * 8
    sizes = [100] * 32
    few, many = clustered_share(together, sizes, 0.98), clustered_share(apart, sizes, 0.98)
    assert few.value == many.value == 0.9875
    assert few.method.endswith(" and skew-corrected t")
    assert few.low < clustered_wilson(together, sizes, 0.98).low - 0.003
    assert many[:3] == clustered_wilson(apart, sizes, 0.98)[:3]
    x = 0.9875 + (np.array(together) - 98.75) / 100
    assert few.low == pytest.approx(skewed_t(x, 0.98, unseen=1.0).low)


@pytest.mark.parametrize(
    ("counts", "sizes", "message"),
    [
        ([1, 2], [1, 2, 3], "2 counts for 3 window sizes"),
        ([1, 3], [2, 2], "between 0 and their window's size"),
        ([-1, 0], [2, 2], "between 0 and their window's size"),
        ([0, 0], [0, 2], "which is not 0"),
    ],
)
def test_counts_that_cannot_be(counts: list[int], sizes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clustered_share(counts, sizes, 0.98)


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850-2875: airway
    # hyper-responsiveness and complete response, Tango's asymptotic score at 95 %
    [(1, 7, 21, -0.5172, -0.0260), (6, 16, 161, -0.1240, -0.0054)],
)
def test_tangos_interval_is_the_published_one(
    gained: int, lost: int, n: int, low: float, high: float
) -> None:
    ours = paired_difference(gained, lost, n, 0.95)
    assert ours.value == (gained - lost) / n
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400), st.floats(0.5, 0.999))
def test_tangos_interval_holds_exactly_what_its_test_does_not_reject(
    gained: int, lost: int, same: int, level: float
) -> None:
    n, z = gained + lost + same, stats.norm.ppf((1 + level) / 2)
    if n == 0:
        return

    def score(d: float) -> float:
        b = (2 * n - gained + lost) * d - gained - lost
        q = (math.sqrt(b * b + 8 * n * lost * d * (1 - d)) - b) / (4 * n)
        return abs(gained - lost - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))

    ours = paired_difference(gained, lost, n, level)
    assert -1 <= ours.low <= ours.value <= ours.high <= 1
    for end in (ours.low, ours.high):
        if abs(end) < 1 - 1e-6:
            assert score(end) == pytest.approx(z, rel=1e-4)
    mirrored = paired_difference(lost, gained, n, level)
    assert (mirrored.low, mirrored.high) == pytest.approx((-ours.high, -ours.low))


def test_two_models_that_never_differ_may_still_differ_a_little() -> None:
    z = stats.norm.ppf(0.99)
    bound = z * z / (50 + z * z)
    assert paired_difference(0, 0, 50, 0.98)[:3] == pytest.approx((0, -bound, bound))


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_items_that_cannot_be(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        paired_difference(*counts, 0.98)


# --- medians -------------------------------------------------------------------------------


@given(st.lists(numbers, min_size=9, max_size=60), st.sampled_from([0.9, 0.95, 0.98, 0.99]))
def test_the_median_interval_is_scipys(values: list[float], level: float) -> None:
    ours = median_interval(values, level)
    theirs = stats.quantile_test(values, q=0, p=0.5).confidence_interval(level)
    assert (ours.low, ours.high) == (theirs.low, theirs.high)
    assert ours.low <= ours.value <= ours.high


@pytest.mark.parametrize(("level", "least"), [(0.95, 6), (0.98, 7), (0.99, 8)])
def test_how_many_values_a_median_needs(level: float, least: int) -> None:
    assert median_interval(range(least), level)[:3] == ((least - 1) / 2, 0, least - 1)
    with pytest.raises(TooFewError, match=f"{least - 1} values are too few for a .* % interval"):
        median_interval(range(least - 1), level)


def test_the_median_of_a_process_is_widened_by_the_spread_between_them() -> None:
    x = stats.norm(0.7, 0.02).ppf((np.arange(400) + 0.5) / 400)  # as normal as a sample can be
    within = process_median(x, 0, 0.98)
    assert within.value == pytest.approx(0.7)
    # The standard error of a normal sample's median is sqrt(pi / 2n) sigma.
    expected = stats.norm.ppf(0.99) * math.sqrt(math.pi / 800) * 0.02
    assert within.high - within.value == pytest.approx(expected, rel=0.02)
    widened = process_median(x, 0.05, 0.98)
    half = math.hypot(within.high - within.value, stats.norm.ppf(0.99) * 0.05)
    assert widened.high - widened.value == pytest.approx(half)
    few = process_median(x, 0.05, 0.98, processes=5)
    scale = stats.t.ppf(0.99, 4) / stats.norm.ppf(0.99)
    assert few.value - few.low == pytest.approx(half * scale)
    assert widened.n == 1
    assert widened.method == "median of 400 steps widened by 5.0 % between processes"


def test_a_spread_must_be_possible() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        process_median([0.0] * 9, -0.1, 0.98)
    with pytest.raises(TooFewError, match="at least 2"):
        process_median([0.0] * 9, 0.1, 0.98, processes=1)
    with pytest.raises(TooFewError, match="5 values are too few"):
        process_median([0.0] * 5, 0.1, 0.98)


# --- bad values ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_a_nan_interval(bad: float) -> None:
    values = [1.0] * 31 + [bad]
    for ours in (
        student_t(values, 0.98),
        skewed_t(values, 0.98),
        median_interval(values, 0.98),
        process_median(values, 0.1, 0.98),
        clustered_wilson(values, [2] * 32, 0.98),
        clustered_share(values, [2] * 32, 0.98),
    ):
        assert all(math.isnan(x) for x in ours[:3])


@pytest.mark.parametrize(("interval", "least"), [(student_t, 2), (skewed_t, 3)])
def test_means_need_some_values_in_one_column(interval: type, least: int) -> None:
    with pytest.raises(TooFewError, match=f"{least - 1} values, at least {least} are needed"):
        interval([1.0] * (least - 1), 0.98)
    with pytest.raises(ValueError, match=r"list of numbers, got shape \(2, 2\)"):
        interval([[1.0, 2.0], [3.0, 4.0]], 0.98)


# --- ratios of means -----------------------------------------------------------------------


def ratio_pairs(n=48, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    below = rng.normal(1.0, 0.4, n)
    return 0.8 * below + rng.normal(0, noise, n) * below.std(), below


def test_a_ratio_of_means_against_scipys_bootstrap():
    above, below = ratio_pairs()
    found = ratio_of_means(above, below, 0.98)
    theirs = stats.bootstrap(
        (above, below),
        lambda x, y, axis: x.mean(axis) / y.mean(axis),
        paired=True,
        vectorized=True,
        confidence_level=0.98,
        n_resamples=20000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.value == pytest.approx(above.mean() / below.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.15 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.15 * width)


@pytest.mark.parametrize("seed", range(5))
def test_fieller_holds_all_ratios_that_a_t_test_does_not_reject(seed):
    above, below = ratio_pairs(n=12, seed=seed, noise=1.0)
    found = ratio_of_means(above, below, 0.9)
    kept = [
        r
        for r in np.linspace(found.low - 1, found.high + 1, 4001)
        if stats.ttest_1samp(above - r * below, 0).pvalue >= 0.1
    ]
    assert found.low <= min(kept)
    assert max(kept) <= found.high


def test_the_same_values_have_a_ratio_of_one_exactly():
    _, below = ratio_pairs()
    found = ratio_of_means(below, below, 0.98)
    assert found.value == 1
    assert found.low == pytest.approx(1, abs=1e-6)
    assert found.high == pytest.approx(1, abs=1e-6)


def test_a_denominator_that_may_be_zero_bounds_nothing():
    rng = np.random.default_rng(0)
    found = ratio_of_means(rng.normal(1, 1, 20), rng.normal(0.1, 1, 20), 0.98)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_ratios_that_there_are_not():
    assert math.isnan(ratio_of_means([1, 2, 3], [1, math.nan, 3], 0.98).value)
    assert math.isnan(ratio_of_means([1, 2, 3], [0, 0, 0], 0.98).low)
    with pytest.raises(TooFewError):
        ratio_of_means([1, 2], [1, 2], 0.98)
    with pytest.raises(ValueError, match="3 values over 4"):
        ratio_of_means([1, 2, 3], [1, 2, 3, 4], 0.98)


def test_how_often_a_ratio_of_means_covers():
    """Skewed gains of 32 windows, as text has them; at 98 %."""
    rng = np.random.default_rng(0)
    misses = 0
    for _ in range(1000):
        below = rng.gamma(2, 0.4, 32)
        above = 0.9 * below + rng.normal(0, 0.2, 32)
        found = ratio_of_means(above, below, 0.98)
        misses += not found.low <= 0.9 <= found.high
    assert misses <= 35
