"""Accuracy beside the base's, and McNemar's test, beside other ways to the same figures."""

import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgate.measure.agreement import accuracies, mcnemar, over_majority

counts = st.integers(0, 60)


def by_fractions(gained, lost):
    """Twice the smaller tail of a fair coin, at most 1, without a rounding."""
    n = gained + lost
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(min(gained, lost) + 1))
    return min(Fraction(1), 2 * tail)


@given(counts, counts)
def test_mcnemar_is_the_exact_sum_of_binomials(gained, lost):
    assert mcnemar(gained, lost) == pytest.approx(float(by_fractions(gained, lost)), rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (0, 6, 0.03125),  # 2 / 2**6
        (1, 9, 22 / 1024),  # 2 (1 + 10) / 2**10
        (5, 5, 1.0),
    ],
)
def test_mcnemar_counted_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def answers(gained, lost, both, neither):
    own = [1] * gained + [0] * lost + [1] * both + [0] * neither
    base = [0] * gained + [1] * lost + [1] * both + [0] * neither
    return own, base


def test_accuracies_are_paired():
    found = {m.name: m for m in accuracies(*answers(3, 11, 60, 26), 0.98, 0.95)}
    assert found["accuracy"].value == pytest.approx(0.63)
    assert found["base_accuracy"].value == pytest.approx(0.71)
    difference = found["accuracy_difference"]
    assert difference.value == pytest.approx(-0.08)
    assert difference.low < -0.08 < difference.high
    assert found["mcnemar_p"].value == pytest.approx(float(by_fractions(3, 11)))
    assert found["mcnemar_p"].interval is None
    assert {m.interval.level for m in found.values() if m.interval} == {0.95}
    # paired: far narrower than if both had been asked other items
    apart = 2.326 * math.sqrt(0.63 * 0.37 / 100 + 0.71 * 0.29 / 100)
    assert difference.high - difference.low < 2 * 0.7 * apart


def test_an_answer_that_is_not_a_number_is_no_accuracy():
    found = {m.name: m for m in accuracies([1, math.nan, 0], [1, 1, 0], 0.98, 0.98)}
    assert math.isnan(found["accuracy"].value)
    assert math.isnan(found["accuracy_difference"].low)
    assert not found["accuracy_difference"].finite
    assert found["base_accuracy"].value == pytest.approx(2 / 3)
    assert "mcnemar_p" not in found


def test_a_base_that_always_says_the_commonest_class_gains_nothing():
    labels = [2] * 50 + [0] * 30 + [1] * 20
    lazy = over_majority([1] * 50 + [0] * 50, labels, 0.98, 0.98)
    assert lazy.value == 0
    assert lazy.low < 0 < lazy.high
    correct = [1] * 40 + [0] * 10 + [1] * 25 + [0] * 5 + [1] * 8 + [0] * 12
    learned = over_majority(correct, labels, 0.98, 0.98)
    assert learned.value == pytest.approx(0.73 - 0.50)
    # 33 items gained, 10 lost
    assert 0 < learned.low < 0.23 < learned.high
    assert math.isnan(over_majority([math.nan], [0], 0.98, 0.98).value)


def test_the_difference_covers_what_it_estimates():
    """Of 400 samples of 150 items, at 90 %: within three standard errors of the level."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        kind = rng.choice(4, 150, p=[0.04, 0.1, 0.6, 0.26])
        own, base = np.isin(kind, (0, 2)), np.isin(kind, (1, 2))
        (difference,) = (
            m for m in accuracies(own, base, 0.9, 0.9) if m.name == "accuracy_difference"
        )
        missed += not difference.low <= -0.06 <= difference.high
    assert abs(missed / 400 - 0.1) < 3 * math.sqrt(0.09 / 400)
