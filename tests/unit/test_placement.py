"""Whole cells, by model, dear ones first, timed ones last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitgate.plugin.placement import Job, Placement

IDLE = {"a": 0.0, "b": 0.0}


def placement(*tests, waiting=True):
    made = Placement(tests)
    if waiting:
        made.put(range(len(tests)))
    return made


def test_a_cell_stays_together_and_the_dear_one_is_first():
    made = placement(
        Job("cheap", "m", cost=1),
        Job("dear", "m", cost=2),
        Job("cheap", "m", cost=1),
        Job("dear", "m", cost=3),
    )
    assert made.take("a", IDLE) == [1, 3]
    assert made.take("b", IDLE) == [0, 2]
    assert made.take("a", IDLE) == []


def test_each_worker_keeps_its_model_and_helps_when_that_is_done():
    made = placement(
        *(Job(f"x{number}", "x", cost=10) for number in range(4)),
        *(Job(f"y{number}", "y", cost=10) for number in range(2)),
    )
    assert made.take("a", IDLE) == [0]
    assert made.take("b", IDLE) == [4]  # the model that nobody has loaded
    assert made.take("a", IDLE) == [1]
    assert made.take("b", IDLE) == [5]
    assert made.take("b", IDLE) == [2]  # its own is done
    assert made.take("a", IDLE) == [3]


def test_what_is_timed_comes_last_in_its_model_and_a_model_only_timed_last_of_all():
    made = placement(
        Job("slow", "timed", timed=True, cost=100),
        Job("both", "m", cost=50),
        Job("both", "m", timed=True, cost=1),
        Job("quality", "m", cost=1),
    )
    assert made.take("a", IDLE) == [3]
    assert made.take("b", IDLE) == [1, 2]
    assert made.take("a", IDLE) == [0]


def test_the_last_cell_is_left_to_who_is_free_sooner():
    made = placement(Job("one", cost=5), Job("two", cost=5))
    assert made.take("a", {"a": 9.0, "b": 1.0}) == [0]
    assert made.take("a", {"a": 9.0, "b": 1.0}) == []
    assert made.take("b", {"a": 9.0, "b": 1.0}) == [1]


def test_what_a_dead_worker_had_waits_again():
    made = placement(*(Job(f"c{number}", "m", cost=1) for number in range(3)))
    taken = made.take("a", IDLE)
    made.forget("a")
    made.put(taken)
    assert sorted(made.take("b", {"b": 0.0})[0] for _ in range(3)) == [0, 1, 2]
    assert len(made) == 0


@given(
    st.lists(
        st.builds(
            Job,
            cell=st.sampled_from("abcdef"),
            model=st.just("m"),
            timed=st.booleans(),
            cost=st.floats(0, 100),
        )
    ),
    st.randoms(use_true_random=False),
)
def test_every_test_is_taken_once(tests, chosen):
    made = placement(*tests)
    taken, workers = [], ["a", "b", "c"]
    while made:
        busy = {worker: chosen.random() for worker in workers}
        taken += made.take(min(busy, key=busy.get), busy)
    assert sorted(taken) == list(range(len(tests)))
