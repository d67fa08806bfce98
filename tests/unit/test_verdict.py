"""One metric against one rule: the outcome, and every sentence."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.gates.verdict import judge
from bitgate.metric import Interval, Metric


def rule(metric: str = "perplexity_ratio", **bound: object) -> Rule:
    return Rule(metric, "hqq w4", "thresholds.toml", Bound.model_validate(bound))


def ratio(value: float, low: float, high: float) -> Metric:
    return Metric("perplexity_ratio", value, Interval(low, high, 0.98, "Student t", "window", 32))


def size(value: float, expected: float | None = None) -> Metric:
    return Metric("size_mib", value, expected=expected)


KNOWN = {"expect": "fail", "reason": "known; see docs"}
WHOLE = "(98 % interval 1.329 to 1.347, Student t over 32 windows)"


@pytest.mark.parametrize(
    ("metric", "bound", "outcome", "text"),
    [
        (
            ratio(1.338, 1.329, 1.347),
            {"max": 1.28},
            "fail",
            f"perplexity_ratio 1.338 {WHOLE} is above max 1.28",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"max": 1.4},
            "pass",
            f"perplexity_ratio 1.338 {WHOLE} is not above max 1.4",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"max": 1.34},
            "inconclusive",
            f"perplexity_ratio 1.338 {WHOLE} may be above max 1.34",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"min": 1.5},
            "fail",
            f"perplexity_ratio 1.338 {WHOLE} is below min 1.5",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"min": 1.33},
            "inconclusive",
            f"perplexity_ratio 1.338 {WHOLE} may be below min 1.33",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"min": 1, "max": 1.4},
            "pass",
            f"perplexity_ratio 1.338 {WHOLE} is not below min 1 and is not above max 1.4",
        ),
        (  # the limit that fails is the one to read about
            ratio(1.338, 1.329, 1.347),
            {"min": 1, "max": 1.2},
            "fail",
            f"perplexity_ratio 1.338 {WHOLE} is above max 1.2",
        ),
        (size(70.5), {"max": 71}, "pass", "size_mib 70.5 (exact) is not above max 71"),
        (size(71), {"max": 71}, "pass", "size_mib 71 (exact) is not above max 71"),
        (
            size(69.5, 69.3),
            {"within": 0.01},
            "pass",
            "size_mib 69.5 (exact, expected 69.3) is within 0.01 of expected 69.3",
        ),
        (
            size(70.5, 69.3),
            {"within": 0.01},
            "fail",
            "size_mib 70.5 (exact, expected 69.3) is not within 0.01 of expected 69.3",
        ),
        (
            size(209, 210),
            {"within": 0},
            "fail",
            "size_mib 209 (exact, expected 210) is not within 0 of expected 210",
        ),
        (
            size(210, 210),
            {"within": 0},
            "pass",
            "size_mib 210 (exact, expected 210) is within 0 of expected 210",
        ),
        (
            size(70),
            {"within": 0.01},
            "fail",
            "size_mib 70 (exact) has no expected value to be within 0.01 of",
        ),
        (
            size(70, math.nan),
            {"within": 0.01},
            "fail",
            "size_mib 70 (exact, expected nan) has no expected value to be within 0.01 of",
        ),
        (
            ratio(math.nan, math.nan, math.nan),
            {"max": 1.28},
            "fail",
            (
                "perplexity_ratio nan (98 % interval nan to nan, Student t over 32 windows) "
                "is not a finite number"
            ),
        ),
        (
            ratio(1.3, 1.2, math.inf),
            {"max": 1.1, **KNOWN},
            "fail",
            (
                "perplexity_ratio 1.3 (98 % interval 1.2 to inf, Student t over 32 windows) "
                "is not a finite number"
            ),
        ),
        (
            size(math.inf),
            {"max": 1, **KNOWN},
            "fail",
            "size_mib inf (exact) is not a finite number",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"max": 1.28, **KNOWN},
            "expected-fail",
            f"perplexity_ratio 1.338 {WHOLE} is above max 1.28, as expected: known; see docs",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"max": 1.34, **KNOWN},
            "inconclusive",
            f"perplexity_ratio 1.338 {WHOLE} may be above max 1.34",
        ),
        (
            ratio(1.338, 1.329, 1.347),
            {"max": 1.4, **KNOWN},
            "fail",
            (
                f"unexpected pass: perplexity_ratio 1.338 {WHOLE} is not above max 1.4 "
                "(expected to fail: known; see docs) - remove the expectation"
            ),
        ),
        (size(70), {"within": 1, **KNOWN}, "fail", "size_mib 70 (exact) has no expected value"),
    ],
)
def test_verdicts(metric: Metric, bound: dict[str, object], outcome: str, text: str) -> None:
    verdict = judge(metric, rule(metric.name, **bound))
    assert (verdict.metric, verdict.outcome) == (metric.name, outcome)
    assert verdict.text.startswith(text)
    assert verdict.text.endswith(' [thresholds.toml rule "hqq w4"]')


def test_the_sentence_of_the_design() -> None:
    assert judge(ratio(1.338, 1.329, 1.347), rule(max=1.28)).text == (
        "perplexity_ratio 1.338 (98 % interval 1.329 to 1.347, Student t over 32 windows) "
        'is above max 1.28 [thresholds.toml rule "hqq w4"]'
    )


@pytest.mark.parametrize("bound", [{"max": 1.28}, {"max": 1.28, **KNOWN}])
def test_what_was_not_measured_fails(bound: dict[str, object]) -> None:
    verdict = judge(None, rule(**bound))
    assert verdict.outcome == "fail"
    assert verdict.text == 'perplexity_ratio was not measured [thresholds.toml rule "hqq w4"]'


def test_a_measurement_cut_short_decides_nothing_by_an_interval() -> None:
    short = "only 5 of the 16 observations it needs"
    cut = judge(ratio(1.338, 1.329, 1.347), rule(max=1.2), short)
    assert cut.outcome == "inconclusive"
    assert f"{WHOLE} cannot be judged: only 5 of" in cut.text
    assert judge(ratio(1.338, math.nan, math.nan), rule(max=1), short).outcome == "inconclusive"
    assert judge(ratio(math.nan, math.nan, math.nan), rule(max=1), short).outcome == "fail"
    assert judge(size(70), rule("size_mib", max=1), short).outcome == "fail"
    assert "was not measured: only 5 of" in judge(None, rule(max=1), short).text


@pytest.mark.parametrize(
    ("metric", "maximum", "text"),
    [
        (size(1.2800001), 1.28, "size_mib 1.2800001 (exact) is above max 1.28 "),
        (size(1.28124), 1.2812, "size_mib 1.28124 (exact) is above max 1.2812 "),
        (size(70_000_001.0), 7e7, "size_mib 7.0000001e+07 (exact) is above max 70000000 "),
        (ratio(1.3, 1.28001, 1.4), 1.28, "1.3 (98 % interval 1.28001 to 1.4, Student"),
    ],
)
def test_numbers_that_differ_look_different(metric: Metric, maximum: float, text: str) -> None:
    assert text in judge(metric, rule(metric.name, max=maximum)).text


sizes = st.floats(-1e9, 1e9)


@given(sizes, sizes)
def test_what_is_read_is_on_the_side_that_was_judged(value: float, maximum: float) -> None:
    verdict = judge(size(value), rule("size_mib", max=maximum))
    assert verdict.outcome == ("fail" if value > maximum else "pass")
    found = re.fullmatch(r"size_mib (\S+) \(exact\) is (not )?above max (\S+) \[.*\]", verdict.text)
    assert found
    shown, allowed = float(found[1]), float(found[3])
    assert allowed == maximum
    assert (shown > allowed, shown < allowed) == (value > maximum, value < maximum)


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.floats(0, 10), st.floats(0, 10))
def test_a_laxer_bound_is_never_worse(numbers: list[float], one: float, other: float) -> None:
    low, value, high = sorted(numbers)
    strict, lax = sorted((one, other))
    order = ["fail", "inconclusive", "pass"]
    outcomes = [judge(ratio(value, low, high), rule(max=x)).outcome for x in (strict, lax)]
    assert order.index(outcomes[0]) <= order.index(outcomes[1])


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.floats(0, 10))
def test_an_expectation_turns_what_is_decided_around(numbers: list[float], bound: float) -> None:
    low, value, high = sorted(numbers)
    plain = judge(ratio(value, low, high), rule(max=bound)).outcome
    expected = judge(ratio(value, low, high), rule(max=bound, **KNOWN)).outcome
    turned = {"fail": "expected-fail", "pass": "fail", "inconclusive": "inconclusive"}
    assert expected == turned[plain]
