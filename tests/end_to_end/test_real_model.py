"""The packaged model itself: what tiny random models cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitgate import quantize
from bitgate.catalog import Execution, load
from bitgate.kernels.served import TorchServed

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def catalog():
    return load(ROOT / "fixtures", quantize.recipe_types())


@pytest.fixture(scope="module")
def model(catalog):
    import torch

    from bitgate.sources import load_model

    torch.set_num_threads(1)
    return load_model(catalog.models["llama-smollm2-135m"], device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def text(catalog, model):
    from bitgate.sources import load_documents, windows

    dataset = catalog.datasets["enwiki"]
    return windows(dataset, model.tokenizer, load_documents(dataset))


@pytest.fixture(scope="module")
def served(catalog, model):
    """4 bits, round to nearest (quantizing takes a second), by each kernel."""
    import torch

    hqq = quantize.method("hqq")
    quantized = hqq.quantize(model, catalog.recipes["hqq-w4g64-rtn-dequantize"], torch.float32)
    return {
        kernel: quantized.serve(Execution("cpu", "float32", 1, kernel))
        for kernel in ("dequantize", "cpu-int4")
    }


def test_rounding_the_cache_moves_kl_by_less_than_a_ten_thousandth(
    model, text, served, tmp_path, monkeypatch
):
    from bitgate.measure.base import BaseModel
    from bitgate.measure.base_scores import LiveScores
    from bitgate.measure.perplexity import PairedScores

    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    base = BaseModel(model.module, Execution("cpu", "float32", 1, "torch"), model.fingerprint)
    kl = []
    for scores in (base, base, LiveScores(base)):  # built, read, live
        batch = next(PairedScores(served["dequantize"], scores, text, 4064).batches())
        kl.append(sum(batch.items["kl"]) / sum(batch.items["tokens"]))
    assert kl[0] == kl[1]
    assert 0.1 < kl[2] < 1
    assert abs(kl[0] - kl[2]) < 1e-4


def test_the_packed_kernel_answers_as_the_reference(model, text, served):
    """Scale, zero and activations are rounded to bfloat16 (8 bits of mantissa): far less than what
    quantizing does, and the likeliest token stays the same."""
    tokens = text.tokens[:2]
    reference = served["dequantize"].logits(tokens)
    packed = served["cpu-int4"].logits(tokens)
    base = TorchServed(model.module, Execution("cpu", "float32", 1, "torch")).logits(tokens)
    rounding = (packed - reference).pow(2).mean().sqrt()
    quantizing = (reference - base).pow(2).mean().sqrt()
    assert rounding < 0.1 * quantizing
    agreement = (packed.argmax(-1) == reference.argmax(-1)).float().mean()
    assert agreement > 0.97


def test_the_int8_kernel_answers_as_its_reference(catalog, model, text):
    """With one scale per output, quantizing costs little; rounding to bfloat16 costs no more."""
    import torch

    linear = quantize.method("linear")
    recipe = catalog.recipes["linear-w8-channel"]
    kernel = linear.kernel(quantize.shapes_of(model.module), recipe, "cpu")
    assert kernel == "cpu-int8"
    quantized = linear.quantize(model, recipe, torch.float32)
    tokens = text.tokens[:2]
    served = [
        quantized.serve(Execution("cpu", "float32", 1, name)) for name in (kernel, "dequantize")
    ]
    assert all(part.packed_layers == part.expected_layers == 210 for part in served)
    packed, reference = (part.logits(tokens) for part in served)
    base = TorchServed(model.module, Execution("cpu", "float32", 1, "torch")).logits(tokens)
    off = (packed - base).norm() / base.norm()
    assert off < 0.03
    assert (packed - reference).norm() / base.norm() < off
