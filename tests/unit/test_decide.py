"""How many batches are pulled, when the intervals are looked at, and at which level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import process_time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgate.gates.decide import GROWTH, decide
from bitgate.gates.looks import look_level
from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.measure.measurement import Batch
from bitgate.measure.perplexity import PairedScores
from bitgate.metric import Interval, Metric
from bitgate.statistics import student_t


class Windows:
    """A measurement of log ratios that come in batches, and of one exact metric beside them."""

    def __init__(self, values: Sequence[float], batch: int = 4, least: int = 16) -> None:
        self.values, self.batch, self.least, self.most = values, batch, least, len(values)
        self.looks: list[tuple[int, float]] = []
        self.pulled = 0
        self.closed = False

    def batches(self) -> Iterator[Batch]:
        try:
            for start in range(0, len(self.values), self.batch):
                self.pulled += 1
                part = self.values[start : start + self.batch]
                yield Batch([0.1], {"log_ratio": part, "title": ["a"] * len(part)})
        finally:
            self.closed = True

    def metrics(self, items, level: float, nominal: float) -> list[Metric]:
        x = items["log_ratio"]
        self.looks.append((len(x), level))
        e = student_t(x, level).exp()
        interval = Interval(e.low, e.high, nominal, e.method, "window", e.n)
        return [Metric("perplexity_ratio", e.value, interval), Metric("packed_layers", 210)]


def rules(**bounds: dict[str, object]) -> dict[str, Rule]:
    return {
        metric: Rule(metric, "g", "thresholds.toml", Bound.model_validate(bound))
        for metric, bound in bounds.items()
    }


def noise(n: int, mean: float = 0.2) -> list[float]:
    return list(np.random.default_rng(0).normal(mean, 0.02, n))


UNDECIDED = math.exp(float(np.mean(noise(200))))


def test_a_clear_case_takes_one_look_at_the_least() -> None:
    windows = Windows(noise(200))
    decision = decide(windows, rules(perplexity_ratio={"max": 1.1}))
    assert [verdict.outcome for verdict in decision.verdicts] == ["fail"]
    assert (decision.looks, decision.batches, decision.stopped) == (1, 4, "decided")
    [(count, level)] = windows.looks
    assert count == 16
    assert 1 - level == pytest.approx(0.02 * (16 / 200) ** 2)  # t² of the error by a time t
    assert windows.closed
    assert decision.metrics[0].interval
    assert decision.metrics[0].interval.level == 0.98  # what is shown is the level of all looks
    assert decision.items["log_ratio"].tolist() == windows.values[:16]
    assert decision.items["title"].tolist() == ["a"] * 16
    assert decision.note == ""


def levels(*counts: int, most: int | None) -> list[tuple[int, float]]:
    """What looks at these counts use if the latest is the last."""
    return [
        (count, look_level(counts[: k + 1], 0.02, most=most, last=count == counts[-1]))
        for k, count in enumerate(counts)
    ]


def test_looks_come_each_time_the_observations_have_grown_by_a_quarter() -> None:
    windows = Windows(noise(52))
    decision = decide(windows, rules(perplexity_ratio={"max": UNDECIDED}))
    assert [verdict.outcome for verdict in decision.verdicts] == ["inconclusive"]
    assert windows.looks == levels(16, 20, 28, 36, 48, 52, most=52)
    assert (decision.looks, decision.batches, decision.stopped) == (6, 13, "exhausted")


def test_a_measurement_need_not_know_where_it_ends() -> None:
    windows = Windows(noise(30))
    del windows.most
    decide(windows, rules(perplexity_ratio={"max": UNDECIDED}))
    assert windows.looks == levels(16, 20, 28, 30, most=None)
    assert windows.looks[0] == (16, 0.99)


def test_more_than_was_announced_is_an_error_of_the_measurement() -> None:
    windows = Windows(noise(30))
    windows.most = 20
    with pytest.raises(ValueError, match="28 observations, where at most 20 were announced"):
        decide(windows, rules(perplexity_ratio={"max": UNDECIDED}))


def test_nothing_new_since_the_latest_look_makes_that_the_last() -> None:
    windows = Windows(noise(16))
    windows.most = 32  # the text is shorter than was thought
    decision = decide(windows, rules(perplexity_ratio={"max": UNDECIDED}))
    assert windows.looks == [(16, pytest.approx(0.995)), (16, pytest.approx(0.98))]
    assert (decision.looks, decision.stopped) == (1, "exhausted")


def test_when_time_is_up_the_look_is_the_last() -> None:
    windows = Windows(noise(200))
    decision = decide(
        windows, rules(perplexity_ratio={"max": UNDECIDED}), deadline=lambda: windows.pulled == 5
    )
    assert windows.looks == levels(16, 20, most=200)
    assert 0.98 <= windows.looks[-1][1] < 0.9802  # the first look has spent next to nothing
    assert [verdict.outcome for verdict in decision.verdicts] == ["inconclusive"]
    assert (decision.looks, decision.batches, decision.stopped) == (2, 5, "out of time")
    assert windows.closed


def test_time_never_cuts_below_the_least() -> None:
    windows = Windows(noise(200))
    decision = decide(windows, rules(perplexity_ratio={"max": 1.1}), deadline=lambda: True)
    assert windows.looks == [(16, 0.98)]
    assert (decision.verdicts[0].outcome, decision.stopped) == ("fail", "decided")


def test_without_rules_there_is_one_look() -> None:
    windows = Windows(noise(200))
    decision = decide(windows, {})
    assert windows.looks == [(16, 0.98)]
    assert (decision.verdicts, decision.stopped, len(decision.metrics)) == ([], "no rules", 2)
    assert windows.closed


def test_all_rules_must_be_decided() -> None:
    windows = Windows(noise(40))
    two = rules(packed_layers={"min": 210}, perplexity_ratio={"max": UNDECIDED})
    decision = decide(windows, two)
    assert [v.outcome for v in decision.verdicts] == ["pass", "inconclusive"]
    assert decision.stopped == "exhausted"
    exact = decide(Windows(noise(40)), rules(packed_layers={"min": 210}))
    assert (exact.batches, exact.stopped) == (4, "decided")


def test_what_is_not_finite_fails_at_once() -> None:
    windows = Windows([*noise(10), math.nan, *noise(189)])
    known = {"max": 1.1, "expect": "fail", "reason": "known"}
    decision = decide(windows, rules(perplexity_ratio=known, packed_layers={"min": 1}))
    assert [verdict.outcome for verdict in decision.verdicts] == ["fail", "pass"]
    assert "is not a finite number" in decision.verdicts[0].text
    assert (decision.batches, decision.stopped) == (4, "not finite")


def test_a_metric_that_is_not_yielded_fails() -> None:
    decision = decide(Windows(noise(200)), rules(kl_divergence={"max": 1}))
    assert [verdict.outcome for verdict in decision.verdicts] == ["fail"]
    assert "kl_divergence was not measured [" in decision.verdicts[0].text


def test_a_measurement_that_ends_too_early_says_so() -> None:
    both = rules(perplexity_ratio={"max": 1.1}, packed_layers={"min": 211})
    decision = decide(Windows(noise(10)), both)
    assert decision.note == "only 10 of the 16 observations it needs"
    assert [verdict.outcome for verdict in decision.verdicts] == ["inconclusive", "fail"]
    assert decision.note in decision.verdicts[0].text
    assert len(decision.metrics) == 2


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_observations_for_any_interval(count: int) -> None:
    decision = decide(Windows(noise(count)), rules(perplexity_ratio={"max": 1.1}))
    assert (decision.metrics, decision.stopped) == ([], "exhausted")
    assert [verdict.outcome for verdict in decision.verdicts] == ["fail"]
    assert f"was not measured: only {count} of the 16" in decision.verdicts[0].text


def test_a_least_that_is_too_small_is_an_error_of_the_measurement() -> None:
    with pytest.raises(ValueError, match="at least 2 are needed"):
        decide(Windows(noise(1), least=1), rules(perplexity_ratio={"max": 1.1}))


def test_batches_are_passed_on_as_they_come_and_the_generator_is_closed_on_errors() -> None:
    windows, passed = Windows(noise(200)), []
    decide(windows, rules(perplexity_ratio={"max": 1.1}), on_batch=passed.append)
    assert len(passed) == 4

    def fails(batch: Batch) -> None:
        raise KeyboardInterrupt

    interrupted = Windows(noise(200))
    with pytest.raises(KeyboardInterrupt):
        decide(interrupted, {}, on_batch=fails)
    assert interrupted.closed


class Given(Windows):
    """Batches as they are given, and only an exact metric."""

    def __init__(self, *given: dict[str, list[float]]) -> None:
        super().__init__([], least=0)
        self.given = given

    def batches(self) -> Iterator[Batch]:
        return iter([Batch([0.1], items) for items in self.given])

    def metrics(self, items, level: float, nominal: float) -> list[Metric]:
        return [Metric("packed_layers", 210)]


def test_batches_need_no_items_nor_a_generator() -> None:
    decision = decide(Given({}, {}), rules(packed_layers={"min": 210}))
    assert (decision.items, decision.batches, decision.looks) == ({}, 1, 1)
    assert decision.verdicts[0].outcome == "pass"


@pytest.mark.parametrize(
    ("given_batches", "message"),
    [
        (({"a": [1.0], "b": []},), "columns of one batch differ in length"),
        (({}, {"a": [1.0]}, {"b": [1.0]}), r"columns \['b'\] after \['a'\]"),
    ],
)
def test_columns_must_fit(given_batches: tuple[dict[str, list[float]], ...], message: str) -> None:
    given_batches = (*given_batches, {})
    measurement = Given(*given_batches)
    measurement.least = 9
    with pytest.raises(ValueError, match=message):
        decide(measurement, {})


@given(st.integers(0, 80), st.integers(1, 9), st.integers(2, 20), st.integers(0, 12))
def test_each_look_is_at_grown_observations_and_spends_a_part_of_alpha(
    total: int, batch: int, least: int, time: int
) -> None:
    windows = Windows(noise(200)[:total], batch, least)
    decision = decide(
        windows, rules(perplexity_ratio={"max": UNDECIDED}), deadline=lambda: windows.pulled > time
    )
    counts = [n for n, _ in windows.looks]
    assert all(level >= 0.98 - 1e-12 for _, level in windows.looks)
    assert all(b >= GROWTH * a for a, b in pairwise(counts[:-1]) if a != b)
    assert len(counts) <= len(set(counts)) + 1  # the end may come at any time
    if total >= least:
        assert min(counts) >= least
    assert len(decision.items.get("log_ratio", [])) == min(total, windows.pulled * batch)


@pytest.mark.parametrize("knows", [True, False])
def test_looking_often_keeps_false_alarms_rare(knows: bool) -> None:
    # The truth lies on the bound, so one in a hundred may fail and one in a hundred may pass.
    rng, outcomes = np.random.default_rng(3), []
    for _ in range(1000):
        windows = Windows(rng.normal(0.0, 0.02, 160).tolist(), batch=8)
        if not knows:
            del windows.most
        decision = decide(windows, rules(perplexity_ratio={"max": 1.0}))
        outcomes.append(decision.verdicts[0].outcome)
    for wrong in ("fail", "pass"):
        assert outcomes.count(wrong) <= 0.018 * len(outcomes)  # 2.5 deviations above 1 %


class Scored(PairedScores):
    """Windows whose scores are known already."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        base, tokens = rng.normal(440, 60, count), np.full(count, 127)
        self.columns = {
            "tokens": tokens,
            "nll": base + rng.normal(25, 10, count),
            "base_nll": base,
            "kl": rng.lognormal(3.4, 0.25, count),
            "same_top1": rng.binomial(tokens, rng.beta(70, 30, count)),
        }
        self.least, self.most = 32, count
        self.quantized = SimpleNamespace(packed_layers=0, expected_layers=0)

    def batches(self) -> Iterator[Batch]:
        for start in range(0, self.most, 8):
            part = slice(start, start + 8)
            yield Batch([0.1], {name: values[part] for name, values in self.columns.items()})


def test_judging_at_all_looks_costs_little() -> None:
    """Under a second a case is asked for; this one has 32 times the windows of `enwiki`'s."""
    measurement = Scored(2048)
    metrics = measurement.metrics(measurement.columns, 0.98, 0.98)
    bounds = {metric.name: {"max": metric.value} for metric in metrics if metric.interval}
    decide(Scored(64), rules(**bounds))  # scipy is imported
    start = process_time()
    decision = decide(measurement, rules(**bounds))
    spent = process_time() - start
    assert decision.looks == 19
    assert {verdict.outcome for verdict in decision.verdicts} == {"inconclusive"}
    assert spent < 1
