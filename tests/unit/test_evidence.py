"""p-values, prediction intervals and Holm's correction, against scipy, published values and
simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitgate.history.evidence import (
    NOTHING,
    Evidence,
    Variance,
    apart,
    error_of,
    holm,
    paired,
    pooled,
    predicted,
    spread,
    within,
)
from bitgate.statistics import TooFewError

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def test_paired_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    then, now = rng.normal(size=32), rng.normal(0.3, 1, 32)
    evidence = paired(now - then, "t")
    for bound in (0.0, 0.1, -0.2):
        theirs = stats.ttest_1samp(now - then, bound, alternative="greater")
        assert evidence.p_above(bound) == pytest.approx(theirs.pvalue, rel=1e-12)
    interval = stats.ttest_rel(now, then).confidence_interval(0.98)
    assert evidence.interval(0.98) == pytest.approx((interval.low, interval.high), rel=1e-12)


def test_no_noise_at_all_is_certain():
    same = paired([0.0] * 16, "t")
    assert same.certain
    assert same.p_above(0) == 1
    assert same.interval(0.98) == (0, 0)
    shifted = paired(np.full(16, 0.1 + 0.2), "t")
    assert shifted.certain
    assert shifted.p_above(0.1) == 0
    assert shifted.p_above(0.31) == 1
    assert shifted.reversed().p_above(0) == 1


def test_too_few():
    with pytest.raises(TooFewError):
        paired([1.0], "t")
    with pytest.raises(TooFewError):
        predicted(1.0, 1, [1.0], None, "t")


def test_a_prediction_interval_of_a_textbook():
    """Mean 50.1, standard deviation 1.31 of 5 readings: 95 % prediction interval 46.1 to 54.1
    (Hahn and Meeker, Statistical Intervals, 1991, section 4.7.1: factor 3.04)."""
    readings = np.array([51.4, 49.5, 48.7, 49.3, 51.6])
    evidence = predicted(50.1, 1, readings, None, "t")
    low, high = evidence.interval(0.95)
    half = (high - low) / 2
    assert readings.mean() == pytest.approx(50.1)
    assert half / readings.std(ddof=1) == pytest.approx(3.04, abs=0.005)


def test_values_of_several_processes_weigh_more():
    # the spread of one process, from means over 4: twice that of the means
    values = [0.9, 1.0, 1.1]
    mean, one, total = spread(values, [4, 4, 4])
    assert (mean, total) == (pytest.approx(1.0), 12)
    assert one == pytest.approx(2 * np.std(values, ddof=1))
    # alike then and now, the weights cancel
    alike = predicted(1.3, 4, values, [4, 4, 4], "t")
    plain = predicted(1.3, 1, values, None, "t")
    assert alike.p_above(0) == pytest.approx(plain.p_above(0), rel=1e-12)
    # a single process now lies further off by chance
    assert predicted(1.3, 1, values, [4, 4, 4], "t").p_above(0) > plain.p_above(0)


@pytest.mark.parametrize("history", [5, 8])
def test_predictions_cover(history):
    """A value like those before is below the limit as often as it should be."""
    rng = np.random.default_rng(1)
    alpha, trials = 0.05, 4000
    red = 0
    for _ in range(trials):
        values = rng.normal(0.7, 0.07, history + 1)
        found = predicted(values[-1], 1, values[:-1], None, "t")
        red += found.reversed().p_above(0) <= alpha
    assert abs(red / trials - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / trials)


def test_runs_together_say_what_analysis_of_variance_says():
    """Mean squares within and between three groups, as scipy's F test of them has it."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(0, 1, n) for n in (3, 5, 8)]
    inside = within([group.std(ddof=1) for group in groups], [3, 5, 8])
    assert inside.freedom == 13
    _, deviation, _ = spread([group.mean() for group in groups], [3, 5, 8])
    assert deviation**2 / inside.value == pytest.approx(stats.f_oneway(*groups).statistic)
    # a run of one process, and one before this was recorded, say nothing
    assert within([0.3, None, None], [3, 1, 5]) == pytest.approx((0.09, 2))
    assert within([None], [1]) == NOTHING


def test_variances_are_pooled_unless_runs_differ_by_more_than_their_processes():
    limit = stats.f.isf(0.25, 7, 36)
    alike = pooled(Variance(0.99 * limit, 7), Variance(1.0, 36))
    assert alike == pytest.approx(((7 * 0.99 * limit + 36) / 43, 43))
    assert pooled(Variance(1.01 * limit, 7), Variance(1.0, 36)) == (1.01 * limit, 7)
    assert pooled(Variance(2.0, 7), NOTHING) == (2.0, 7)


@pytest.mark.parametrize(
    ("launches", "own", "most"),
    [
        (2, 0.0, 0.02),
        (5, 0.0, 0.02),
        (5, 0.5, 0.03),  # what differs from run to run is hard to tell from nothing, if it is small
        (5, 1.0, 0.03),
        (5, 3.0, 0.025),
    ],
)
def test_predictions_by_processes_are_seldom_wrong(launches, own, most):
    """8 runs before; `own`: how much runs differ beside their processes, in standard deviations of
    a process."""
    rng = np.random.default_rng(0)
    trials, wrong = 3000, 0
    for _ in range(trials):
        x = rng.normal(0, 1, (9, launches)) + rng.normal(0, own, (9, 1))
        mean, deviations = x.mean(axis=1), list(x.std(axis=1, ddof=1))
        inside = within(deviations, [launches] * 9)
        counts = [launches] * 8
        wrong += predicted(mean[8], launches, mean[:8], counts, "", inside).p_above(0) <= 0.02
    assert wrong / trials <= most + 3.3 * math.sqrt(0.02 * 0.98 / trials)


def test_two_values_with_known_errors():
    evidence = apart(0.3, (0.03, 0.04), "t")
    assert evidence.error == pytest.approx(0.05)
    assert evidence.p_above(0.2) == pytest.approx(stats.t.sf(2, 9))
    assert error_of(-0.1163174, 0.1163174, 0.98) == pytest.approx(0.05, rel=1e-6)


def test_holm_by_hand():
    """The step-down by its definition: p(1) m, p(2) (m - 1), ..., never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]


@given(P_VALUES, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_procedure_rejects(p_values, alpha):
    """Against Holm's own sequential procedure."""
    rejected = set()
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[at] > alpha:
            break
        rejected.add(at)
    assert {at for at, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(P_VALUES)
def test_holm_lies_between_no_correction_and_bonferroni(p_values):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1, len(p_values) * p)


@given(st.floats(-1e3, 1e3), st.floats(0.001, 1e3), st.floats(1, 100))
def test_reversing_mirrors(change, error, freedom):
    evidence = Evidence(change, error, freedom, "")
    low, high = evidence.interval(0.98)
    assert evidence.reversed().interval(0.98) == pytest.approx((-high, -low))
    assert evidence.reversed().p_above(0) == pytest.approx(1 - evidence.p_above(0), abs=1e-9)
