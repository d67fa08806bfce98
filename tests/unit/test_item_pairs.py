"""Items that were answered then and now: what is a change, and what cannot be compared."""

import numpy as np
import pytest
from scipy import stats

from bitgate.gates.tolerances import DEFAULTS
from bitgate.history.change import judged
from bitgate.history.compare import compare
from bitgate.history.item_pairs import changed_share
from bitgate.history.saved import read_run

RNG = np.random.default_rng(1)
BASE = RNG.random(300) < 0.7
THEN = BASE ^ (RNG.random(300) < 0.1)


@pytest.fixture
def changes(runs):
    def make(then, now):
        sides = []
        for case in (then, now):
            run = read_run(runs.save(case))
            ((record,),) = run.records.values()
            sides.append(run.side(record))
        return {change.metric: change for change in judged(compare(*sides, DEFAULTS, {}))}

    return make


def test_the_same_answers_are_unchanged(runs, changes):
    found = changes(runs.answers(THEN, BASE), runs.answers(THEN, BASE))
    verdicts = {name: change.verdict for name, change in found.items()}
    assert verdicts.pop("base_accuracy") == "recorded"
    assert set(verdicts.values()) == {"unchanged"}
    assert all(change.p is None for change in found.values())  # and cost others nothing


@pytest.mark.parametrize(("answer", "verdict"), [(0, "regression"), (1, "better")])
def test_what_many_items_say(runs, changes, answer, verdict):
    now = THEN.copy()
    now[np.flatnonzero(answer != THEN)[:40]] = answer
    found = changes(runs.answers(THEN, BASE), runs.answers(now, BASE))
    assert found["accuracy"].verdict == verdict
    assert found["accuracy"].change == pytest.approx(now.mean() - THEN.mean())
    assert found["accuracy_difference"].verdict == verdict


def test_as_many_lost_as_gained_is_no_regression_of_accuracy(runs, changes):
    now = THEN.copy()
    now[np.flatnonzero(THEN)[:30]] = False
    now[np.flatnonzero(~THEN)[:30]] = True
    found = changes(runs.answers(THEN, BASE), runs.answers(now, BASE))
    assert found["accuracy"].change == 0
    assert found["accuracy"].verdict == "inconclusive"


def test_another_base_is_said_once(runs, changes):
    found = changes(runs.answers(THEN, BASE), runs.answers(THEN, ~BASE))
    assert found["base_accuracy"].verdict == "regression"
    assert "base's own answers differ" in found["base_accuracy"].text
    assert found["accuracy"].verdict == "not comparable"


def test_other_labels_are_other_items(runs, changes):
    labels = np.arange(300) % 3
    then, now = runs.answers(THEN, BASE, label=labels), runs.answers(THEN, BASE, label=labels[::-1])
    found = changes(then, now)
    assert "differ in label" in found["accuracy"].why


def test_items_of_tasks_have_names(runs, changes):
    sides = []
    for correct in (THEN, THEN):
        record, columns = runs.answers(correct, BASE, case="task[a]")
        columns["id"] = np.array([f"item {n}" for n in columns.pop("number")])
        sides.append((record, columns))
    assert changes(*sides)["accuracy"].verdict == "unchanged"


def test_too_few_items(runs, changes):
    found = changes(runs.answers(THEN[:15], BASE[:15]), runs.answers(THEN[:15], BASE[:15]))
    assert found["accuracy"].why == "15 items were answered in both, 16 are needed"


def test_without_scores(runs, changes):
    then, _ = runs.answers(THEN, BASE)
    found = changes((then, {}), runs.answers(THEN, BASE))
    assert "per-item scores of" in found["accuracy"].why


@pytest.mark.parametrize("n", [60, 200, 1000])
def test_few_changed_items_alarm_no_more_often_than_they_may(n):
    """No item is likelier to be lost than gained: one-sided tests at 2 %, over all that could
    happen with 1 to 20 changed items."""
    for changed in range(1, 21):
        alarms = 0.0
        for lost in range(changed + 1):
            d = np.zeros(n)
            d[:lost], d[lost:changed] = 1, -1
            if changed_share(d, "").p_above(0) <= 0.02:
                alarms += stats.binom.pmf(lost, changed, 0.5)
        assert alarms <= 0.02 + 1e-9
