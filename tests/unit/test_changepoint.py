"""Change points: found where they are, as seldom where none are as promised."""

import numpy as np
import pytest
import ruptures
from scipy import stats

from bitgate.history.changepoint import LEAST, change_points


def steps(*levels, spread=0.05, seed=0):
    """Each level is (value, count)."""
    rng = np.random.default_rng(seed)
    means = np.concatenate([np.full(count, value) for value, count in levels])
    return means + spread * rng.standard_normal(len(means))


def places(values, alpha=0.01):
    return [point.at for point in change_points(values, alpha)]


def test_a_step_is_found_where_it_is():
    assert places(steps((1, 15), (1.3, 8))) == [15]


def test_a_step_there_and_back_is_two():
    assert places(steps((1, 12), (1.3, 6), (1, 12))) == [12, 18]


def test_a_single_outlier_is_no_level():
    values = steps((1, 20))
    values[9] = 3
    assert places(values) == []
    values[-1] = 3
    assert places(values) == []


def test_the_p_value_is_students_times_the_places_where_it_could_be():
    values = steps((1, 12), (1.2, 9), spread=0.1, seed=3)
    (found,) = change_points(values, 0.05)
    p = stats.ttest_ind(values[: found.at], values[found.at :]).pvalue
    assert found.p == pytest.approx(p * (len(values) - 2 * LEAST + 1))


def test_candidates_are_those_of_the_plain_algorithm():
    """ruptures' own Pelt, not its compiled sibling, at the same penalty."""
    values = steps((1, 10), (1.5, 10), (1, 10))
    scale = np.median(np.abs(np.diff(values))) / stats.norm.ppf(0.75) / np.sqrt(2)
    search = ruptures.Pelt(model="l2", min_size=LEAST, jump=1).fit(values / scale)
    assert places(values) == search.predict(pen=2 * np.log(30))[:-1]


@pytest.mark.parametrize(
    "values", [[], [1.0], [1.0] * 5, [1.0, 1, 1, 2, 2], [3.0] * 40, [0.0] * 40]
)
def test_too_few_or_all_alike(values):
    assert change_points(values, 0.05) == []


def test_values_that_repeat_exactly_but_for_one_step():
    (found,) = change_points([1.0] * 5 + [2.0] * 4, 0.01)
    assert found == (5, 0.0)


def test_unit_and_offset_change_nothing():
    values = steps((1, 12), (1.2, 9))
    found = places(values)
    assert found == places(1e-9 * values) == places(1e9 * values + 1e9)


@pytest.mark.parametrize("n", [6, 8, 20, 60])
def test_false_alarms_on_noise_are_as_promised(n):
    rng = np.random.default_rng(n)
    alarms = sum(bool(places(rng.standard_normal(n), 0.05)) for _ in range(400))
    assert stats.binomtest(alarms, 400, 0.05, "greater").pvalue > 0.001


def test_a_weak_candidate_is_dropped_and_its_neighbours_judged_without_it():
    values = steps((1, 10), (1.03, 6), (1.4, 10), seed=1)
    (at,) = places(values, 0.001)
    assert 14 <= at <= 17
