"""`tools/power`: the timings that are committed, others' rules as they state them, the bound."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

POWER = Path(__file__).parents[2] / "tools" / "power"
RECORDED = POWER / "recorded.csv"


@pytest.fixture
def tool(monkeypatch):
    """Its modules, by name."""
    monkeypatch.syspath_prepend(POWER)
    return importlib.import_module


@pytest.fixture
def recorded(tool):
    return tool("record").read(RECORDED)


# --- timings -------------------------------------------------------------------------------


def test_what_is_committed_can_be_read(recorded):
    assert len(recorded) >= 40
    assert recorded.pairs == 8
    for clock in ("wall", "CPU"):
        assert recorded.log_ratios(clock).shape == (len(recorded),)
        assert 2 < np.exp(recorded.log_ratios(clock)).mean() < 5
    wall, cpu = recorded.seconds["seconds"], recorded.seconds["cpu_seconds"]
    assert (cpu <= wall + 1e-4).all(), "one thread uses no more CPU time than there is"


def test_a_launch_that_was_cut_off_is_left_out(tool, recorded, tmp_path):
    lines = RECORDED.read_text().splitlines(keepends=True)
    path = tmp_path / "cut.csv"
    path.write_text("".join(lines[:-3]))
    assert len(tool("record").read(path)) == len(recorded) - 1
    path.write_text("".join(lines[: 1 + 8 * 9]))
    with pytest.raises(ValueError, match="9 launches, at least 10 are needed"):
        tool("record").read(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns launch, "):
        tool("record").read(path)


# --- this suite ----------------------------------------------------------------------------


def test_a_slowdown_of_a_record_is_one_of_its_launches(tool, recorded):
    """What is put into records is what longer steps would have made of them."""
    suite, record = tool("suite"), tool("record")
    judge = suite.Judge.of(recorded, 0.02)
    launches = np.array([0, 3, 3, 5])
    spread = judge.calibrated(np.arange(10))
    changed = record.Recorded(
        {name: x if name.startswith("base") else 1.3 * x for name, x in recorded.seconds.items()}
    )
    longer = suite.Judge.of(changed, 0.02).measured(launches, spread)
    seeded = suite.slower(judge.measured(launches, spread), 0.3)
    assert longer.metrics.keys() == seeded.metrics.keys() == {"speedup", "cpu_speedup"}
    for name, value in longer.metrics.items():
        other = seeded.metrics[name]
        assert value.value == pytest.approx(other.value)
        assert value.bounds.low == pytest.approx(other.bounds.low)
        assert value.deviation == pytest.approx(other.deviation)


def test_the_smallest_slowdown_is_searched(tool):
    smallest = tool("suite").smallest
    assert smallest(lambda share: share >= 0.237) == pytest.approx(0.237, abs=0.001)
    assert smallest(lambda share: share >= 0.02) == pytest.approx(0.02, abs=0.001)
    assert smallest(lambda share: True) == 0
    assert smallest(lambda share: False) == math.inf


@pytest.mark.parametrize("way", ["compared", "predicted"])
def test_the_gate_sees_a_large_slowdown_and_is_seldom_red_without(tool, recorded, way):
    suite = tool("suite")
    judge = suite.Judge.of(recorded, 0.02)
    trials = [getattr(suite, way)(judge, 5, np.random.default_rng(seed)) for seed in range(25)]
    assert sum(trial(0.0) for trial in trials) <= 3
    assert sum(trial(0.5) for trial in trials) >= 23


@pytest.mark.parametrize("launches", [1, 5])
def test_unchanged_runs_as_they_followed_each_other_are_seldom_red(tool, recorded, launches):
    suite = tool("suite")
    red, of, pairs = tool("order").adjacent(suite.Judge.of(recorded, 0.02), launches).split()
    assert (of, int(pairs) >= 50) == ("of", True)
    assert int(red) <= 2


# --- others --------------------------------------------------------------------------------


def rule(tool, name):
    return next(rule for rule in tool("others").RULES if rule.name == name)


@pytest.mark.parametrize(
    ("name", "change", "red"),
    [
        ("pytest-benchmark, mean", 1.049, False),
        ("pytest-benchmark, mean", 1.051, True),
        ("pytest-benchmark, min", 1.051, True),
        ("asv", 1.09, False),  # below its factor
        ("asv", 1.11, True),
        ("pyperf", 1.0001, False),  # not significant
        ("pyperf", 1.02, True),
    ],
)
def test_others_as_people_have_them(tool, name, change, red):
    old = np.linspace(1, 1.01, 8)[None]
    one = rule(tool, name)
    assert one.red(old, change * old, one.usual).tolist() == [red]
    assert not one.red(old, 0.5 * old, one.usual).any(), "faster is no regression"


def test_asv_needs_samples_that_hardly_overlap(tool):
    """Medians 30 % apart, but two of eight lie among the others: p is above 0.002."""
    old = np.array([[1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.4, 1.5]])
    new = np.array([[0.9, 1.015, 1.33, 1.34, 1.35, 1.36, 1.37, 1.38]])
    one = rule(tool, "asv")
    assert (one.summary(new) > 1.1 * one.summary(old)).all()
    assert not one.red(old, new, 0.10).any()


def test_rules_are_tuned_to_few_alarms(tool):
    rng = np.random.default_rng(0)
    old, new = rng.lognormal(0, 0.1, (2, 2000, 8))
    for one in tool("others").RULES:
        least = one.tuned(old, new, 0.02)
        assert one.red(old, new, least).mean() <= 0.02
        if least:
            assert one.red(old, new, 0.9 * least).mean() > 0.02


# --- what the spread permits -----------------------------------------------------------------


def test_the_bound_is_what_the_best_test_finds(tool):
    bound, rng = tool("bound"), np.random.default_rng(0)
    old, new = rng.normal(0, 0.05, (200_000, 5)), rng.normal(0, 0.05, (200_000, 5))
    moved = math.log1p(bound.known(0.05, 5, 5))
    z = (new.mean(axis=1) - old.mean(axis=1)) / (0.05 * math.sqrt(2 / 5))
    assert (z > 2.0537).mean() == pytest.approx(0.02, abs=0.002)
    assert (z + moved / (0.05 * math.sqrt(2 / 5)) > 2.0537).mean() == pytest.approx(0.8, abs=0.005)
    moved = math.log1p(bound.student(0.05, 5, 5, 8))
    pooled = np.sqrt((old.var(axis=1, ddof=1) + new.var(axis=1, ddof=1)) / 2 * 2 / 5)
    t = (new.mean(axis=1) - old.mean(axis=1) + moved) / pooled
    assert (t > 2.4490).mean() == pytest.approx(0.8, abs=0.005)  # t(0.98) of 8 degrees of freedom
    assert bound.student(0.05, 1, 1, 0) == math.inf
