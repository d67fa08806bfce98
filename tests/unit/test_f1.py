"""Macro-F1 beside scikit-learn's, its interval beside the jackknife by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

from bitgate import statistics
from bitgate.measure.f1 import confusion, macro_f1, score

classes = st.integers(0, 3)
triples = st.lists(st.tuples(classes, classes, classes), min_size=3, max_size=40)


@given(triples)
@settings(deadline=None)
def test_beside_scikit_learn(rows):
    labels, own, base = (np.array(x) for x in zip(*rows, strict=True))
    found = {m.name: m for m in macro_f1(labels, own, base, 0.98, 0.98)}
    theirs = [f1_score(labels, x, average="macro", zero_division=0) for x in (own, base)]
    assert found["macro_f1"].value == pytest.approx(theirs[0])
    assert found["macro_f1_difference"].value == pytest.approx(theirs[0] - theirs[1])
    counts = confusion(labels, own)
    assert (counts == confusion_matrix(labels, own, labels=range(len(counts)))).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_the_jackknifes(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, 60, p=[0.5, 0.3, 0.2])
    own = np.where(rng.random(60) < 0.8, labels, rng.integers(0, 3, 60))
    base = np.where(rng.random(60) < 0.9, labels, rng.integers(0, 3, 60))

    def difference(rows):
        return score(confusion(labels[rows], own[rows])) - score(
            confusion(labels[rows], base[rows])
        )

    everything = np.arange(60)
    whole = difference(everything)
    pseudo = [60 * whole - 59 * difference(np.delete(everything, i)) for i in range(60)]
    e = statistics.student_t(pseudo, 0.98)
    (found,) = (
        m for m in macro_f1(labels, own, base, 0.98, 0.95) if m.name == "macro_f1_difference"
    )
    assert found.value == pytest.approx(whole)
    assert found.high - found.low == pytest.approx(e.high - e.low)
    assert (found.low + found.high) / 2 == pytest.approx(whole)
    assert (found.interval.level, found.interval.n) == (0.95, 60)


def test_two_that_answer_alike_do_not_differ():
    labels, said = [0, 1, 2, 0, 1, 2], [0, 1, 1, 0, 1, 2]
    found = {m.name: m for m in macro_f1(labels, said, said, 0.98, 0.98)}
    assert (found["macro_f1_difference"].low, found["macro_f1_difference"].high) == (0, 0)
    assert found["macro_f1"].value == pytest.approx((1 + 0.8 + 2 / 3) / 3)


def test_the_interval_covers_the_figure_of_all_items():
    """Of 300 samples of 120 items, at 90 %: within three standard errors, and two points more, as
    the jackknife promises its level for many items only."""
    rng = np.random.default_rng(1)
    mixed = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    share = np.array([0.5, 0.3, 0.2])
    truth = score(np.round(1e6 * share[:, None] * mixed).astype(int))
    missed = 0
    for _ in range(300):
        labels = rng.choice(3, 120, p=share)
        own = np.array([rng.choice(3, p=mixed[label]) for label in labels])
        found = macro_f1(labels, own, own, 0.9, 0.9)[0]
        missed += not found.low <= truth <= found.high
    assert abs(missed / 300 - 0.1) < 3 * math.sqrt(0.09 / 300) + 0.02
