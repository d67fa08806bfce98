"""Intervals over processes: against scipy, by simulation, and at their edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitgate.measure.processes import (
    ASSUMED,
    Between,
    deviation_interval,
    deviation_over,
    launches_needed,
    over_processes,
)
from bitgate.statistics import TooFewError, process_median


def between(deviation=0.05, launches=10):
    return Between(deviation, launches, "from a test")


def steps_of(rng, processes, deviation, steps=8, within=0.02, mean=0.0):
    """Log ratios and their launch numbers, of processes that differ."""
    centre = rng.normal(mean, deviation, (processes, 1))
    x = centre + rng.normal(0, within, (processes, steps))
    return x.ravel(), np.repeat(np.arange(processes), steps)


# --- intervals -----------------------------------------------------------------------------


def test_one_process_is_widened_by_what_is_known():
    x, launch = steps_of(np.random.default_rng(1), 1, 0.05)
    estimate = over_processes(x, launch, between(), 0.98)
    reference = process_median(x, 0.05, 0.98, processes=10)
    assert estimate[:4] == pytest.approx(reference[:4])
    assert estimate.method == "median of 8 steps widened by 5.0 % between processes (from a test)"


def test_steps_that_are_all_alike_give_the_textbook_pooled_interval():
    medians = np.array([0.61, 0.70, 0.66])
    x, launch = np.repeat(medians, 8), np.repeat([4, 5, 9], 8)
    estimate = over_processes(x, launch, between(0.06, 10), 0.98)
    pooled = math.sqrt((9 * 0.06**2 + 2 * medians.var(ddof=1)) / 11)
    low, high = stats.t.interval(0.98, 11, medians.mean(), pooled / math.sqrt(3))
    assert estimate[:4] == pytest.approx((medians.mean(), low, high, 3))
    assert (
        estimate.method == "Student t, its spread pooled with 6.0 % between processes (from a test)"
    )


def test_it_does_not_matter_in_which_order_steps_come():
    x, launch = steps_of(np.random.default_rng(2), 3, 0.05)
    mixed = np.random.default_rng(3).permutation(len(x))
    assert over_processes(x, launch, between(), 0.98) == pytest.approx(
        over_processes(x[mixed], launch[mixed], between(), 0.98)
    )


def test_processes_that_differ_more_than_known_are_believed():
    medians = np.array([0.2, 0.7, 1.3])
    x, launch = np.repeat(medians, 8), np.repeat([0, 1, 2], 8)
    estimate = over_processes(x, launch, between(0.01, 10), 0.98)
    half = stats.t.isf(0.01, 11) * medians.std(ddof=1) / math.sqrt(3)
    assert estimate.high - estimate.value == pytest.approx(half)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5, 8])
def test_98_percent_intervals_cover(processes):
    """The calibration is as uncertain as ten launches make it."""
    rng = np.random.default_rng(processes)
    covered, trials = 0, 1000
    for _ in range(trials):
        calibrated = deviation_over(*steps_of(rng, 10, 0.05))
        x, launch = steps_of(rng, processes, 0.05, mean=0.7)
        estimate = over_processes(x, launch, between(calibrated), 0.98)
        covered += estimate.low <= 0.7 <= estimate.high
    assert covered / trials >= 0.97


@pytest.mark.parametrize(("processes", "least"), [(3, 0.915), (5, 0.94), (8, 0.955)])
def test_coverage_suffers_little_where_processes_differ_twice_as_much(processes, least):
    rng = np.random.default_rng(processes)
    covered, trials = 0, 1000
    for _ in range(trials):
        x, launch = steps_of(rng, processes, 0.1, within=0.0)
        calibrated = 0.05 * math.sqrt(rng.chisquare(9) / 9)
        estimate = over_processes(x, launch, between(calibrated), 0.98)
        covered += estimate.low <= 0 <= estimate.high
    assert covered / trials >= least


def test_more_processes_narrow_the_interval():
    widths = []
    for processes in (1, 2, 3, 5, 8):
        rng = np.random.default_rng(7)
        estimates = [
            over_processes(*steps_of(rng, processes, 0.05), between(), 0.98) for _ in range(60)
        ]
        widths.append(np.mean([e.high - e.low for e in estimates]))
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_no_interval(bad):
    x, launch = steps_of(np.random.default_rng(1), 2, 0.05)
    x[3] = bad
    estimate = over_processes(x, launch, between(), 0.98)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_a_process_with_too_few_steps_is_refused():
    with pytest.raises(TooFewError):
        over_processes([0.1] * 8 + [0.2] * 5, [0] * 8 + [1] * 5, between(), 0.98)


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    st.floats(0.001, 0.5),
    st.integers(3, 40),
)
def test_the_value_lies_inside_and_a_stricter_level_is_wider(medians, deviation, launches):
    x, launch = np.repeat(medians, 8), np.repeat(np.arange(len(medians)), 8)
    known = between(deviation, launches)
    loose, strict = (over_processes(x, launch, known, level) for level in (0.98, 0.995))
    assert strict.low < loose.low < loose.value < loose.high < strict.high
    assert loose.n == len(medians)


def test_an_assumption_counts_less_than_a_calibration():
    assert ASSUMED.ratio.launches < 10
    assert (ASSUMED.ratio.deviation, ASSUMED.seconds.deviation) == (0.05, 0.45)


# --- spreads -------------------------------------------------------------------------------


def test_the_deviation_is_that_of_medians():
    x, launch = steps_of(np.random.default_rng(5), 6, 0.05)
    medians = [np.median(x[launch == number]) for number in range(6)]
    assert deviation_over(x, launch) == pytest.approx(np.std(medians, ddof=1))
    with pytest.raises(TooFewError):
        deviation_over(x[launch == 0], launch[launch == 0])


def test_the_interval_of_a_deviation_covers():
    rng = np.random.default_rng(6)
    inside = 0
    for _ in range(2000):
        low, high = deviation_interval(between(float(rng.normal(0, 0.05, 10).std(ddof=1))))
        inside += low <= 0.05 <= high
    assert 0.97 <= inside / 2000 <= 0.99


# --- how many it takes ---------------------------------------------------------------------


@pytest.mark.parametrize(("deviation", "slowdown"), [(0.05, 0.1), (0.05, 0.05), (0.02, 0.05)])
def test_so_many_launches_show_a_slowdown(deviation, slowdown):
    """By simulation: they do in 80 % of cases, and one fewer does not."""
    known = between(deviation)
    needed = launches_needed(known, slowdown)
    rng = np.random.default_rng(8)

    def power(processes):
        shown = 0
        for _ in range(600):
            medians = rng.normal(math.log(1 - slowdown), deviation, processes)
            launch = np.repeat(np.arange(processes), 8)
            shown += over_processes(np.repeat(medians, 8), launch, known, 0.98).high < 0
        return shown / 600

    assert power(needed) > 0.76
    assert power(needed - 1) < 0.82


def test_what_no_number_of_launches_shows():
    assert launches_needed(between(0.5), 0.001) is None
    assert launches_needed(between(0.01), 0.2) == 1
