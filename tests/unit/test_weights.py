"""The error of quantized weights, layer by layer, and how it is compared with an earlier run's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitgate.history.layers import evidence
from bitgate.measure.weights import BLOCK, weight_errors
from bitgate.quantize import method, shapes_of


@pytest.mark.parametrize("shape", [(3, 5), (64, 128), (1, BLOCK + 7), (BLOCK // 8 + 3, 16)])
def test_the_relative_error_in_the_frobenius_norm(shape):
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=False)
    quantized = layer.weight.detach() + 0.1 * torch.randn(shape)
    (found,) = weight_errors(nn.Sequential(layer), [("0", quantized)]).values()
    w = layer.weight.detach().double()
    expected = torch.linalg.matrix_norm(w - quantized.double()) / torch.linalg.matrix_norm(w)
    assert found == pytest.approx(float(expected), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.floats(-0.5, 0.5), st.floats(1e-3, 1e3))
def test_a_scale_that_is_off_shows_as_such(off, size):
    layer = nn.Linear(8, 4, bias=False)
    layer.weight.data = size * torch.arange(1, 33.0).reshape(4, 8)
    (found,) = weight_errors(nn.Sequential(layer), [("0", layer.weight * (1 + off))]).values()
    assert found == pytest.approx(abs(off), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("weight", "quantized", "expected"),
    [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, math.nan, math.nan)],
)
def test_weights_that_are_zero_or_not_finite(weight, quantized, expected):
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data.fill_(weight)
    (found,) = weight_errors(nn.Sequential(layer), [("0", torch.full((2, 2), quantized))]).values()
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_convolution_counts_like_a_matrix():
    layer = nn.Conv2d(3, 4, 3, bias=False)
    quantized = layer.weight.detach() * 1.25
    assert weight_errors(nn.Sequential(layer), [("0", quantized)])["0"] == pytest.approx(0.25)


def test_one_scale_off_by_two_per_cent_is_lost_in_the_worst_layer_and_not_between_runs(llama, hqq):
    base = llama()
    good, bad = hqq(base), hqq(base)
    name = good.layers[3]
    bad.layer(name).meta["scale"] *= 1.02
    then, now = (side(weight_errors(base, made.weights())) for made in (good, bad))
    found = evidence(then, now)
    assert found.certain
    assert 0.01 < found.change < 0.1
    assert name in found.method


RECIPES = [
    ("hqq", {"bits": 3, "group_size": 32}, 1e-5),
    ("linear", {"bits": 8, "granularity": "channel", "kernel": "dequantize"}, 1e-5),
    ("linear", {"bits": 4, "group_size": 32, "symmetric": True, "kernel": "dequantize"}, 1e-5),
    ("torchao", {}, 1e-5),
    ("bitsandbytes", {"type": "nf4", "double": True, "kernel": "bitsandbytes"}, 1e-5),
    ("bitsandbytes", {"type": "fp4", "kernel": "bitsandbytes"}, 1e-5),
    ("bitsandbytes", {"type": "int8"}, 0.05),  # its inputs are quantized as well
]


@pytest.mark.parametrize(("name", "recipe", "tolerance"), RECIPES)
def test_a_base_with_these_weights_says_what_the_quantized_model_says(
    llama, loaded, execution, name, recipe, tolerance
):
    how = method(name)
    if how.EXTRA is not None and how.EXTRA.missing():
        pytest.skip(how.EXTRA.missing())
    base, tokens = llama(), torch.arange(24)[None]
    recipe = how.RECIPE(**recipe)
    made = how.quantize(loaded(base), recipe, torch.float32)
    served = made.serve(execution(how.kernel(shapes_of(base), recipe, "cpu")))
    weights = dict(made.weights())
    assert len(weights) == 14
    copy = llama()
    for layer, weight in weights.items():
        copy.get_submodule(layer).weight.data = weight.clone()
    expected = copy(tokens).logits
    off = (served.logits(tokens) - expected).abs().max() / expected.abs().max()
    assert off < tolerance
    errors = weight_errors(base, weights.items())
    assert 0.001 < min(errors.values()) <= max(errors.values()) < 0.4


# --- between runs --------------------------------------------------------------------------


def side(errors, run="0001"):
    from bitgate.history.saved import Side

    columns = {"layer": np.array(list(errors)), "weight_error": np.array(list(errors.values()))}
    return Side(None, run, columns)


@pytest.mark.parametrize(
    ("was", "is_", "change"),
    [
        ({"a": 0.1, "b": 0.1}, {"a": 0.1, "b": 0.1}, 0.0),
        ({"a": 0.1, "b": 0.1}, {"a": 0.05, "b": 0.11}, math.log(1.1)),
        ({"a": 0.1, "b": 0.1}, {"b": 0.11, "a": 0.05}, math.log(1.1)),
        ({"a": 0.1, "b": 0.1}, {"a": 0.05, "b": 0.09}, math.log(0.9)),
        ({"a": 0.0}, {"a": 0.0}, 0.0),
        ({"a": 0.0}, {"a": 1e-9}, math.inf),
        ({"a": 1e-9}, {"a": 0.0}, -math.inf),
    ],
)
def test_the_layer_that_changed_most_for_the_worse(was, is_, change):
    found = evidence(side(was), side(is_))
    assert found.change == pytest.approx(change)
    assert found.certain


def test_what_cannot_be_compared_says_why():
    assert evidence(side({"a": 0.1}), side({"a": 0.1, "b": 0.2})) == (
        "other layers: 1 are quantized in only one of the two, such as b"
    )
    lacking = side({})
    lacking.items.clear()
    assert evidence(lacking, side({"a": 1.0})).startswith("the layers of 0001 are missing")
    assert evidence(side({"a": 1.0}), lacking).startswith("the layers of 0001 are missing")
