"""A base that is used up: the quantized model is the same, and the memory is given back."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitgate.measure.peak_memory import PROC
from bitgate.quantize import method
from bitgate.quantize.letting_go import let_go
from bitgate.quantize.replaced import is_shared
from bitgate.sources import LoadedModel

MIB = 2**20


def loaded(module):
    return LoadedModel(module, None, "", None)


def mapped():
    """Resident bytes of mapped files."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return 1024 * int(line.split()[1])
    raise AssertionError


@pytest.mark.parametrize("name", ["hqq", "linear"])
def test_the_quantized_model_is_the_same(llama, name):
    how = method(name)
    recipe = how.RECIPE(method=name, bits=4, group_size=64)
    kept = how.quantize(loaded(llama()), recipe, torch.float32)
    base = llama()
    used_up = how.quantize(replace(loaded(base), expendable=True), recipe, torch.float32)
    assert used_up.module is base  # no copy of the tree
    for (first, a), (second, b) in zip(kept.weights(), used_up.weights(), strict=True):
        assert first == second
        assert torch.equal(a, b)
    tokens = torch.arange(16)[None]
    assert torch.equal(kept.module(tokens).logits, used_up.module(tokens).logits)


def test_a_base_that_is_needed_stays_as_it_is(llama):
    base = llama()
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    method("hqq").quantize(loaded(base), method("hqq").RECIPE(bits=4, group_size=64), torch.float32)
    assert all(torch.equal(before[key], tensor) for key, tensor in base.state_dict().items())


@pytest.fixture
def file(tmp_path):
    """Two layers of 16 MiB each in a file, mapped and resident."""
    tensors = {f"{n}.weight": torch.full((1024, 4096), float(n)) for n in range(2)}
    save_file(tensors, tmp_path / "two.safetensors")
    layers = []
    for tensor in load_file(tmp_path / "two.safetensors").values():
        layer = torch.nn.Linear(4096, 1024, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
        float(tensor.sum())
        layers.append(layer)
    return layers


def test_the_pages_of_a_mapped_layer_go_and_its_neighbour_stays(file):
    first, second = file
    before = mapped()
    let_go(first)
    assert before - mapped() == pytest.approx(16 * MIB, rel=0.02)
    assert torch.equal(second.weight, torch.full((1024, 4096), 1.0))
    assert torch.equal(first.weight, torch.full((1024, 4096), 0.0))  # read from the file again


def test_memory_of_its_own_is_never_touched():
    layer = torch.nn.Linear(1024, 1024)
    before = layer.weight.clone()
    let_go(layer)
    assert torch.equal(layer.weight, before)


def test_what_a_head_shares_with_the_embedding_is_kept(llama):
    tied = llama(tie_word_embeddings=True)
    assert is_shared(tied, tied.lm_head)
    assert not is_shared(tied, tied.model.layers[0].mlp.up_proj)
