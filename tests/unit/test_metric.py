"""Metrics: what is written of them. What is judged is in test_verdict.py."""

import json
import math

import pytest

from bitgate.catalog import KINDS
from bitgate.metric import SPECS, Interval, Metric, decimals, number, plural

INTERVAL = Interval(1.3294, 1.3471, 0.98, "Student t", "window", 32)


def test_texts():
    assert str(Metric("perplexity_ratio", 1.33801, INTERVAL)) == (
        "perplexity_ratio 1.338 (98 % interval 1.329 to 1.347, Student t over 32 windows)"
    )
    assert str(Metric("packed_layers", 209, expected=210)) == (
        "packed_layers 209 (exact, expected 210)"
    )
    assert str(Metric("base_size_mib", 513.13)) == "base_size_mib 513.1 (exact)"


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"),
        (210.0, "210"),
        (-3.0, "-3"),
        (1.33801, "1.338"),
        (0.00012345, "0.0001234"),
        (9999.4, "9999"),
        (12345.6, "1.235e+04"),
        (1e300, "1.000e+300"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers(x, text):
    assert number(x) == text


@pytest.mark.parametrize(
    ("x", "places", "text"),
    [
        (97.53, 1, "97.5"),
        (1.0, 0, "1"),
        (0.1234, 1, "0.12"),
        (0.046, 0, "0.046"),
        (0.0, 1, "0"),
        (-0.123, 0, "-0.12"),
        (math.nan, 1, "nan"),
    ],
)
def test_what_is_small_keeps_two_digits(x, places, text):
    assert decimals(x, places) == text


def test_plurals():
    assert plural("process", 1) == "process"
    assert plural("process", 2) == "processes"
    assert plural("window", 0) == "windows"


def test_limits_of_an_exact_metric_are_its_value():
    metric = Metric("size_mib", 3.5)
    assert (metric.low, metric.high) == (3.5, 3.5)


@pytest.mark.parametrize("broken", ["value", "low", "high"])
def test_a_metric_with_any_number_that_is_not_finite(broken):
    numbers = {"value": 1.0, "low": 0.9, "high": 1.1, broken: math.nan}
    interval = Interval(numbers["low"], numbers["high"], 0.98, "x", "window", 2)
    assert not Metric("perplexity", numbers["value"], interval).finite


def test_records_are_json_and_not_rounded():
    record = Metric("perplexity_ratio", 1 / 3, INTERVAL, expected=None).record()
    assert json.loads(json.dumps(record)) == {
        "value": 1 / 3,
        "unit": "1",
        "better": "lower",
        "interval": {
            "low": 1.3294,
            "high": 1.3471,
            "level": 0.98,
            "method": "Student t",
            "unit": "window",
            "n": 32,
        },
    }
    exact = Metric("packed_layers", 3, expected=4).record()
    assert (exact["interval"], exact["expected"]) == ("exact", 4)


def test_specs():
    for name, spec in SPECS.items():
        assert spec.name == name
        assert set(spec.kinds) <= set(KINDS)
        assert spec.meaning
