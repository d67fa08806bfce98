"""Quantizing as it is measured: sizes beside those predicted, time, and a file that gives the same
logits back."""

import math
import time

import pytest
import torch

from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.gates.verdict import judge
from bitgate.measure.quantization import quantization
from bitgate.quantize import hqq as method
from bitgate.quantize.hqq_recipe import HqqRecipe

MIB = 2**20


@pytest.fixture
def measure(llama, loaded, execution, items_of, metrics_of):
    """The metrics of quantizing a tiny Llama, and what was kept."""

    def run(kernel="dequantize", **recipe):
        kept = []

        def keep(quantized):
            kept.append(quantized)
            return quantized.serve(execution(kernel))

        recipe = HqqRecipe(**{"bits": 4, "group_size": 32, **recipe})
        measurement = quantization(loaded(llama()), recipe, execution(kernel), keep)
        assert measurement.least == 1
        items = items_of(measurement)
        (quantized,) = kept
        return metrics_of(measurement, items), items, quantized

    return run


@pytest.mark.parametrize(
    ("kernel", "recipe"),
    [("dequantize", {"bits": 3, "axis": 0}), ("cpu-int4", {}), ("cpu-int4", {"head": 4})],
)
def test_metrics(measure, kernel, recipe):
    metrics, items, quantized = measure(kernel, **recipe)
    assert set(metrics) == {
        "quantize_seconds",
        "size_mib",
        "memory_mib",
        "base_size_mib",
        "reload_difference",
        "weight_error",
        "packed_layers",
    }
    assert metrics["reload_difference"].value == 0
    memory = metrics["memory_mib"]
    assert memory.value == memory.expected
    packed = metrics["packed_layers"]
    assert packed.value == packed.expected == len(quantized.layers) == 14 + ("head" in recipe)
    exact = set(metrics) - {"quantize_seconds"}
    assert all(metrics[name].interval is None for name in exact)
    assert items["layer"].tolist() == list(quantized.layers)
    assert metrics["weight_error"].value == items["weight_error"].max()


def test_the_file_is_its_tensors_and_a_header(measure, tmp_path):
    metrics, _, quantized = measure()
    size = metrics["size_mib"]
    quantized.save(tmp_path / "file")
    assert size.value * MIB == (tmp_path / "file").stat().st_size
    assert size.value == size.expected
    weights = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256)
    header = int.from_bytes((tmp_path / "file").read_bytes()[:8], "little") + 8
    assert size.expected * MIB - header == weights // 2 + 2 * 4 * weights // 32 + 4 * (
        2 * 256 * 128 + 5 * 128
    )


def test_the_bases_size(measure):
    weights = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) + 2 * 256 * 128 + 5 * 128
    rotary = 2 * 128 // 4 // 2  # transformers keeps the original beside the one in use
    assert measure()[0]["base_size_mib"].value * MIB == 4 * (weights + rotary)


def test_a_file_that_gives_other_logits_is_seen(measure, monkeypatch):
    load = method.load

    def tampered(path, device):
        quantized = load(path, device)
        quantized.layer(quantized.layers[-1]).meta["scale"] *= 1.01
        return quantized

    monkeypatch.setattr(method, "load", tampered)
    assert 1e-4 < measure()[0]["reload_difference"].value < 1


def test_a_file_that_gives_no_numbers_is_no_pass(measure, monkeypatch):
    load = method.load

    def tampered(path, device):
        quantized = load(path, device)
        quantized.layer(quantized.layers[-1]).meta["scale"][0] = math.nan
        return quantized

    monkeypatch.setattr(method, "load", tampered)
    metric = measure()[0]["reload_difference"]
    assert math.isnan(metric.value)
    rule = Rule("reload_difference", "gate", "thresholds.toml", Bound(max=0))
    assert judge(metric, rule).outcome == "fail"


def test_time_is_that_of_quantizing_alone_widened(measure, monkeypatch):
    quantize = method.quantize

    def slow(*args):
        time.sleep(0.3)
        return quantize(*args)

    def slow_load(*args):
        time.sleep(1)
        return load(*args)

    load = method.load
    monkeypatch.setattr(method, "quantize", slow)
    monkeypatch.setattr(method, "load", slow_load)
    metrics, items, _ = measure(solver=False)
    metric = metrics["quantize_seconds"]
    assert 0.3 < metric.value == items["seconds"][0] < 1
    assert items["cpu_seconds"][0] < metric.value - 0.25
    # 2.326 standard deviations of 45 % at 98 %, on the logarithm
    for ratio in (metric.high / metric.value, metric.value / metric.low):
        assert ratio == pytest.approx(math.exp(2.3263 * 0.45), rel=1e-4)
    assert metric.interval.method == "one time, widened by 45 % between processes"
    assert "over 1 process)" in str(metric)


def test_the_base_stays_as_it_is(llama, loaded, execution, items_of):
    base = llama()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    recipe = HqqRecipe(bits=2, group_size=64)
    items_of(quantization(loaded(base), recipe, execution(), lambda q: q.serve(execution())))
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
