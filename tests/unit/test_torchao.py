"""torchao's int8 weights: its own numbers, sizes from shapes alone, files that give the same
logits."""

import pytest

pytest.importorskip("torchao")

import torch
from torch import nn
from torchao.quantization import Int8Tensor

from bitgate.catalog import CatalogError, Execution, parse
from bitgate.kernels.served import tensor_bytes
from bitgate.quantize import shapes_of
from bitgate.quantize import torchao as ours
from bitgate.quantize.torchao import TorchaoRecipe

TOKENS = torch.arange(24).reshape(2, 12)
EXECUTION = Execution("cpu", "float32", 1, "torchao")


@pytest.fixture(scope="session")
def quantize(loaded):
    def run(module, **recipe):
        dtype = next(module.parameters()).dtype
        return ours.quantize(loaded(module), TorchaoRecipe(**recipe), dtype)

    return run


def test_weights_are_rounded_row_by_row(quantize):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(128, 96))
    weight = base[0].weight.detach()
    layer = quantize(base).layer("0")
    assert type(layer.weight) is Int8Tensor
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    assert torch.allclose(layer.weight.scale, scale, rtol=1e-6)
    expected = (weight / scale).round().clamp(-128, 127)
    # what lies halfway between two codes may go the other way
    assert (layer.weight.qdata == expected).float().mean() > 0.999
    x = torch.randn(5, 128)
    with torch.inference_mode():
        rounded = nn.functional.linear(x, layer.weight.dequantize(), base[0].bias)
        assert torch.allclose(layer(x), rounded, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ({}, {}),
        ({"tie_word_embeddings": True}, {}),
        ({"attention_bias": True}, {}),
        ({"dtype": torch.bfloat16}, {}),
        ({"intermediate_size": 77, "num_key_value_heads": 1}, {}),
        ({}, {"first_blocks": 1}),
    ],
    ids=str,
)
def test_size_and_file(llama, quantize, tmp_path, model, recipe):
    base = llama(**model)
    quantized = quantize(base, **recipe)
    shapes = shapes_of(base)
    assert ours.kernel(shapes, quantized.recipe, "cpu") == "torchao"
    element = next(base.parameters()).element_size()
    predicted = ours.predicted_bytes(shapes, quantized.recipe, "torchao", element)
    served = quantized.serve(EXECUTION)
    assert served.packed_layers == served.expected_layers == (7 if recipe else 14)
    assert tensor_bytes(served.module) == served.memory_bytes() == predicted.memory
    quantized.save(tmp_path / "file")
    header = int.from_bytes((tmp_path / "file").read_bytes()[:8], "little") + 8
    assert header == predicted.header
    assert (tmp_path / "file").stat().st_size == predicted.disk
    again = ours.load(tmp_path / "file").serve(EXECUTION)
    assert again.packed_layers == served.packed_layers
    assert tensor_bytes(again.module) == predicted.memory
    assert torch.equal(again.logits(TOKENS), served.logits(TOKENS))


def test_a_weight_that_was_left_alone_is_seen(llama, quantize):
    quantized = quantize(llama())
    quantized.module.model.layers[0].mlp.up_proj = nn.Linear(128, 256)
    served = quantized.serve(EXECUTION)
    assert (served.packed_layers, served.expected_layers) == (13, 14)


def test_the_base_stays(llama, quantize, served):
    base = llama(tie_word_embeddings=True)
    before = served(base).logits(TOKENS)
    quantized = quantize(base)
    assert torch.equal(served(base).logits(TOKENS), before)
    assert type(base.model.layers[0].mlp.up_proj.weight) is nn.Parameter
    embedding = quantized.module.model.embed_tokens.weight
    assert embedding.data_ptr() == base.model.embed_tokens.weight.data_ptr()


def test_recipes():
    assert TorchaoRecipe().name == "torchao-w8"
    for keys, message in (
        ({"bits": 4}, r"here: bits: .*8"),
        ({"kernel": "cpu-int4"}, "no kernel 'cpu-int4' serves torchao's layers"),
        ({"group_size": 64}, "here: group_size: .* leave the key out"),
    ):
        with pytest.raises(CatalogError, match=message):
            parse(TorchaoRecipe, {"method": "torchao", **keys}, "here")
