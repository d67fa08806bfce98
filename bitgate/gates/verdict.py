"""One metric against one rule: a verdict, and the sentence that says why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound, written
from bitgate.metric import Metric, number
from bitgate.statistics import Outcome, three_way


@dataclass(frozen=True)
class Verdict:
    """What became of a rule, with the numbers behind it in `text`."""

    metric: str
    outcome: Literal["pass", "fail", "inconclusive", "expected-fail"]
    gate: str
    text: str


@dataclass(frozen=True)
class _Limit:
    """One of a bound's `min`, `max`, `within`, and the range that it allows."""

    key: Literal["min", "max", "within"]
    bound: float
    minimum: float
    maximum: float

    def judge(self, metric: Metric) -> Outcome:
        return three_way(metric.low, metric.high, self.minimum, self.maximum)

    def text(self, metric: Metric, digits: int) -> str:
        text = f"{self.key} {written(self.bound)}"
        if self.key == "within":
            text += f" of expected {number(_expected(metric), digits)}"
        return text


_WORST_FIRST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")

#: what a limit's text is preceded by
_WORDS: dict[tuple[str, Outcome], str] = {
    ("min", "fail"): "is below",
    ("min", "pass"): "is not below",
    ("min", "inconclusive"): "may be below",
    ("max", "fail"): "is above",
    ("max", "pass"): "is not above",
    ("max", "inconclusive"): "may be above",
    ("within", "fail"): "is not",
    ("within", "pass"): "is",
    ("within", "inconclusive"): "may not be",
}


def judge(metric: Metric | None, rule: Rule, short: str = "") -> Verdict:
    """Judge a metric, or None if the measurement did not yield it, by the rule for it.

    An exact metric is judged as it is, any other by its interval, neither rounded. Only what was
    measured, is finite and lies wholly beyond the bound can be an expected failure. `short` says
    that the measurement ended too early for intervals, which then decide nothing.
    """
    if metric is None:
        why = f": {short}" if short else ""
        return _verdict("fail", rule, f"{rule.metric} was not measured{why}")
    if short and metric.interval is not None and math.isfinite(metric.value):
        return _verdict("inconclusive", rule, f"{metric} cannot be judged: {short}")
    if not metric.finite:
        return _verdict("fail", rule, f"{metric} is not a finite number")
    if rule.bound.within is not None and not math.isfinite(_expected(metric)):
        return _verdict(
            "fail", rule, f"{metric} has no expected value to be within {rule.bound.within:g} of"
        )
    outcome, text = _compare(metric, list(_limits(metric, rule.bound)))
    if rule.bound.expect is None or outcome == "inconclusive":
        return _verdict(outcome, rule, text)
    if outcome == "fail":
        return _verdict("expected-fail", rule, f"{text}, as expected: {rule.bound.reason}")
    return _verdict(
        "fail",
        rule,
        f"unexpected pass: {text} (expected to fail: {rule.bound.reason}) - remove the expectation",
    )


def unruled(metric: Metric) -> Verdict | None:
    """What is said of a metric without a rule: nothing, unless it is not a finite number, which is
    never right."""
    if math.isfinite(metric.value):
        return None
    return Verdict(metric.name, "fail", "", f"{metric} is not a finite number [no rule needed]")


def _verdict(
    outcome: Literal["pass", "fail", "inconclusive", "expected-fail"], rule: Rule, text: str
) -> Verdict:
    return Verdict(rule.metric, outcome, rule.gate, f"{text} {rule.source}")


def _limits(metric: Metric, bound: Bound) -> Iterator[_Limit]:
    if bound.min is not None:
        yield _Limit("min", bound.min, bound.min, math.inf)
    if bound.max is not None:
        yield _Limit("max", bound.max, -math.inf, bound.max)
    if bound.within is not None:
        expected = _expected(metric)
        allowed = bound.within * abs(expected)
        yield _Limit("within", bound.within, expected - allowed, expected + allowed)


def _expected(metric: Metric) -> float:
    return math.nan if metric.expected is None else metric.expected


def _compare(metric: Metric, limits: list[_Limit]) -> tuple[Outcome, str]:
    """The worst of the limits' outcomes, and which limits made it."""
    outcomes = {limit: limit.judge(metric) for limit in limits}
    worst = min(outcomes.values(), key=_WORST_FIRST.index)
    named = [limit for limit, outcome in outcomes.items() if outcome == worst]
    digits = _digits(metric, named)
    words = (f"{_WORDS[limit.key, worst]} {limit.text(metric, digits)}" for limit in named)
    return worst, f"{metric.text(digits)} {' and '.join(words)}"


def _digits(metric: Metric, limits: list[_Limit]) -> int:
    """The fewest digits that show value and interval on the side of each limit where they are."""
    numbers = (metric.value, metric.low, metric.high)
    marks = {x for limit in limits for x in (limit.minimum, limit.maximum) if math.isfinite(x)}
    for digits in range(4, 17):
        shown = [float(number(x, digits)) for x in numbers]
        if all(
            _side(x, mark) == _side(seen, mark)
            for x, seen in zip(numbers, shown, strict=True)
            for mark in marks
        ):
            return digits
    return 17


def _side(x: float, mark: float) -> int:
    return (x > mark) - (x < mark)
