"""GPTQ: sizes from shapes alone, codes that any kernel can read, the library's own numbers."""

import math
import os
from importlib.util import find_spec

import pytest
import torch
from torch import nn

if find_spec("gptqmodel") is None:  # importing it would change the environment
    pytest.skip("pip install 'bitgate[gptq]'", allow_module_level=True)

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from bitgate.catalog import CatalogError, Dataset
from bitgate.kernels.affine import Grouping
from bitgate.kernels.served import tensor_bytes
from bitgate.measure.weights import weight_errors
from bitgate.quantize import QuantizeError, shapes_of
from bitgate.quantize import gptq as ours
from bitgate.quantize.gptq import load
from bitgate.quantize.gptq_files import LAYERS, PARTS, unpacked
from bitgate.quantize.gptq_recipe import GptqRecipe
from bitgate.quantize.gptq_sizes import layer_bytes, unpackable
from bitgate.sources import LoadedModel, reporting_to

TOKENS = torch.arange(24).reshape(2, 12)
VOCABULARY = 256


class Bytes:
    """A tokenizer for the tiny Llama: a token per byte."""

    bos_token_id = None

    def __call__(self, texts, add_special_tokens, verbose):
        return {"input_ids": [list(text.encode()) for text in texts]}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A dataset of words in random order, in windows of 64 bytes."""
    words = ["the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "by", "with", "as"]
    order = torch.randint(0, len(words), (4000,), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(words[i] for i in order))

    def make(**changes):
        fields = {
            "name": "words",
            "source": {"kind": "local", "path": path},
            "format": "plain",
            "tokens": 1008,
            "tokens_limit": 1008,
            "window": 64,
        }
        return Dataset.model_validate({**fields, **changes})

    return make


@pytest.fixture(scope="module")
def recipe(text):
    def make(**changes):
        fields = {"bits": 4, "group_size": 64, "calibration": text()}
        return GptqRecipe.model_validate({**fields, **changes})

    return make


@pytest.fixture(scope="module")
def quantized(llama, recipe):
    """The base and its quantized model; each is made once."""
    made = {}

    def make(model=(), **changes):
        key = repr((model, changes))
        if key not in made:
            base = llama(**dict(model))
            loaded = LoadedModel(base, Bytes(), "made here", None)
            made[key] = base, ours.quantize(loaded, recipe(**changes), torch.float32)
        return made[key]

    return make


# --- sizes and files -----------------------------------------------------------------------


def parts_in(path):
    return sum(tensor.nbytes for tensor in load_file(path).values())


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ((), {}),
        ((), {"bits": 8}),
        ((), {"bits": 3}),
        ((), {"bits": 2, "symmetric": False}),
        ((), {"symmetric": False}),
        ((("tie_word_embeddings", True), ("attention_bias", True)), {"group_size": 32}),
        # 96 inputs in groups of 64: the second one is half as large
        ((("intermediate_size", 96),), {"bits": 3}),
        ((("intermediate_size", 96),), {"layers": ["*.down_proj"], "label": "down"}),
        ((), {"kernel": "gptqmodel"}),
    ],
    ids=str,
)
def test_size_and_file(quantized, execution, tmp_path, model, changes):
    """Sizes measured are those predicted, and a file gives the same logits back."""
    base, found = quantized(model, **changes)
    shapes, path = shapes_of(base), tmp_path / "file"
    kernel = ours.kernel(shapes, found.recipe, "cpu")
    whole = not model or "tie_word_embeddings" in dict(model)
    packed = found.recipe.bits == 4 and found.recipe.kernel == "auto" and whole
    assert kernel == ("cpu-int4" if packed else "gptqmodel")
    predicted = ours.predicted_bytes(shapes, found.recipe, kernel, 4)
    served = found.serve(execution(kernel))
    assert served.packed_layers == served.expected_layers == len(found.layers)
    assert tensor_bytes(served.module) == served.memory_bytes() == predicted.memory
    found.save(path)
    assert parts_in(path) == predicted.tensors
    assert path.stat().st_size == predicted.disk
    again = load(path).serve(execution(kernel))
    assert again.memory_bytes() == predicted.memory
    assert again.packed_layers == len(found.layers)
    assert torch.equal(again.logits(TOKENS), served.logits(TOKENS))
    assert load(path).recipe == found.recipe
    # having answered, it keeps nothing more
    assert served.memory_bytes() == predicted.memory


def test_in_bfloat16_to_the_byte(llama, recipe, tmp_path):
    """From shapes that know no dtype, as those of a configuration."""
    with torch.device("meta"):
        shapes = shapes_of(llama()).in_dtype("bfloat16")
    base = llama(dtype=torch.bfloat16)
    loaded = LoadedModel(base, Bytes(), "made here", None)
    ours.quantize(loaded, recipe(), torch.bfloat16).save(tmp_path / "file")
    predicted = ours.predicted_bytes(shapes, recipe(), "gptqmodel", 2)
    assert (tmp_path / "file").stat().st_size == predicted.disk


grouping = st.builds(
    Grouping,
    out_features=st.integers(1, 8).map(lambda n: 8 * n),
    in_features=st.integers(1, 12).map(lambda n: 8 * n),
    bits=st.sampled_from((8, 4, 3, 2)),
    group_size=st.sampled_from((16, 32, 64)),
    axis=st.just(1),
)


@settings(deadline=None, max_examples=60)
@given(grouping)
def test_packing_rules_are_the_librarys(grouping):
    """What the library packs has the bytes predicted, and is unpacked as the library does it."""
    if unpackable(grouping):
        return
    rows, columns, bits = grouping.out_features, grouping.in_features, grouping.bits
    groups = math.ceil(columns / grouping.group_size)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scale = torch.rand(rows, groups, generator=generator).half().float() + 0.5
    zero = torch.randint(0, 2**bits, (rows, groups), generator=generator).float()
    group_of = (torch.arange(columns) // grouping.group_size).int()
    linear = nn.Linear(columns, rows)
    spread = scale[:, group_of], zero[:, group_of]
    linear.weight.data = (codes - spread[1]) * spread[0]
    layer = LAYERS.layer_class()(
        bits=bits,
        group_size=grouping.group_size,
        sym=True,
        desc_act=False,
        in_features=columns,
        out_features=rows,
        bias=True,
        register_buffers=False,
    )
    layer.pack_original(linear, scale, zero, group_of)
    kept = [*(getattr(layer, part) for part in PARTS), layer.bias]
    assert sum(tensor.nbytes for tensor in kept) == layer_bytes(grouping, bias=True)
    assert torch.equal(unpacked(layer.qweight, bits).T.int(), codes.int())
    assert torch.equal(unpacked(layer.qzeros.T, bits)[:rows].float(), zero)


def test_affine_is_what_the_layer_computes(quantized):
    made = [{}, {"symmetric": False}, {"bits": 8}, {"bits": 3}, {"bits": 2, "symmetric": False}]
    for changes in made:
        _, found = quantized(**changes)
        zeros = torch.cat([found.affine(name).zero.flatten() for name in found.layers])
        assert (len(zeros.unique()) > 1) == (not found.recipe.symmetric)
        for name in found.layers:
            affine = found.affine(name)
            assert affine.codes.dtype == torch.uint8
            grouped = affine.codes.to(affine.scale.dtype).unflatten(1, (-1, 64))
            weight = (grouped - affine.zero[..., None]) * affine.scale[..., None]
            assert torch.equal(weight.flatten(1).T, found.layer(name).dequantize_weight())


def test_weights_are_the_bases_but_for_rounding(quantized):
    worst = []
    for changes in ({"bits": 8}, {}, {"bits": 3}):
        base, found = quantized(**changes)
        errors = weight_errors(base, found.weights())
        assert errors.keys() == set(found.layers)
        worst.append(max(errors.values()))
    assert worst[0] < 0.02
    assert worst == sorted(worst)
    assert worst[-1] < 0.5


def test_no_affine_of_groups_out_of_order(quantized):
    _, found = quantized()
    layer = found.layer(found.layers[0])
    order, layer.g_idx = layer.g_idx, layer.g_idx.flip(0)
    with pytest.raises(QuantizeError, match=r"q_proj: .*not of so many neighbours each"):
        found.affine(found.layers[0])
    layer.g_idx = order


# --- what it is for ------------------------------------------------------------------------


def rounded(weight, bits, group_size):
    """Round to nearest on the library's grid: symmetric, the largest weight of a group on it."""
    groups = weight.unflatten(1, (-1, group_size))
    low, high = (
        groups.amin(-1, keepdim=True).clamp(max=0),
        groups.amax(-1, keepdim=True).clamp(min=0),
    )
    step = 2 * torch.maximum(-low, high) / (2**bits - 1)
    middle = 2 ** (bits - 1)
    codes = (groups / step + middle).round().clamp(0, 2**bits - 1)
    return ((codes - middle) * step).flatten(1)


@pytest.mark.parametrize("changes", [{}, {"bits": 3}])
def test_outputs_are_closer_than_rounding(quantized, text, changes):
    """On inputs like those that it has seen, which is what the method minimizes."""
    base, found = quantized(**changes)
    name = "model.layers.0.mlp.down_proj"
    seen = []
    hook = base.get_submodule(name).register_forward_hook(lambda m, x, y: seen.append(x[0]))
    tokens = torch.tensor(list(text().source.path.read_bytes()[2000:4048])).reshape(-1, 64)
    with torch.inference_mode():
        base(tokens)
    hook.remove()
    inputs, weight = seen[0].flatten(0, 1), base.get_submodule(name).weight
    own = found.layer(name).dequantize_weight().float().T

    def error(approximation):
        return float((inputs @ (weight - approximation).T).square().mean())

    assert error(own) < 0.8 * error(rounded(weight, found.recipe.bits, 64))


def test_more_bits_are_closer(quantized, served, execution):
    differences = []
    for changes in ({"bits": 2, "symmetric": False}, {"bits": 3}, {}, {"bits": 8}):
        base, found = quantized(**changes)
        logits = found.serve(execution("gptqmodel")).logits(TOKENS)
        differences.append(float((logits - served(base).logits(TOKENS)).square().mean()))
    assert differences == sorted(differences, reverse=True)
    assert differences[-1] < 1e-3 * differences[0]


# --- beside the base -----------------------------------------------------------------------


def test_the_base_and_the_process_stay_as_they_are(llama, recipe, capfd, monkeypatch, tmp_path):
    """Nothing is written, and neither weights, nor environment, nor threads change."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # which the library takes for a reason to be quiet
    base = llama(tie_word_embeddings=True)
    kept = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    environment, threads = dict(os.environ), torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    seen = []
    with reporting_to(lambda report: seen.append(str(report))):
        found = ours.quantize(LoadedModel(base, Bytes(), "", None), recipe(), torch.float32)
    assert seen[-1] == "gptq-w4g64-words: gptqmodel solves: 2 blocks (100 %)"
    assert all(torch.equal(tensor, kept[name]) for name, tensor in base.state_dict().items())
    assert type(base.model.layers[0].mlp.up_proj) is nn.Linear
    assert (dict(os.environ), torch.get_num_threads()) == (environment, threads)
    pointers = {tensor.data_ptr() for tensor in base.state_dict().values()}
    inside = tuple(f"{name}." for name in found.layers)
    rest = {k: t for k, t in found.module.state_dict().items() if not k.startswith(inside)}
    assert rest
    assert all(tensor.data_ptr() in pointers for tensor in rest.values())
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_used_up(llama, quantized, recipe):
    base = llama()
    loaded = LoadedModel(base, Bytes(), "", None, expendable=True)
    used_up = ours.quantize(loaded, recipe(), torch.float32)
    assert used_up.module is base
    _, kept = quantized()
    for (first, a), (second, b) in zip(kept.weights(), used_up.weights(), strict=True):
        assert first == second
        assert (a - b).norm() < 0.01 * a.norm()
    shared = kept.module.state_dict().keys()
    assert base.state_dict().keys() == shared


def test_only_the_layers_chosen_are_quantized(quantized):
    base, found = quantized(layers=["*.v_proj", "*.1.mlp.*"], label="some")
    linears = {n for n, m in found.module.named_modules() if type(m) is nn.Linear}
    assert linears | set(found.layers) == {
        name for name, part in base.named_modules() if type(part) is nn.Linear
    }
    assert set(found.layers) == {
        *(f"model.layers.{block}.self_attn.v_proj" for block in (0, 1)),
        *(f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")),
    }


# --- errors --------------------------------------------------------------------------------


def test_a_text_that_is_too_short(llama, recipe, text):
    short = recipe(calibration=text(tokens=10**6, tokens_limit=10**6))
    with pytest.raises(
        QuantizeError, match=r"recipe gptq-w4g64-words: calibration: dataset words: too short"
    ):
        ours.quantize(LoadedModel(llama(), Bytes(), "", None), short, torch.float32)


def test_windows_that_are_too_short(recipe, text):
    with pytest.raises(ValidationError, match=r"calibration\n.* words has windows of 8 tokens"):
        recipe(calibration=text(window=8))


def test_a_model_without_a_tokenizer(llama, loaded, recipe):
    with pytest.raises(QuantizeError, match=r"gptq-w4g64-words: calibration: .*no tokenizer"):
        ours.quantize(loaded(llama()), recipe(), torch.float32)


def test_a_layer_that_cannot_be_packed(llama, loaded, recipe):
    shapes = shapes_of(llama(intermediate_size=100))
    with pytest.raises(
        QuantizeError,
        match=r"gptq-w4g64-words: .*gate_proj: .* outputs must be a multiple of 32; give `layers` "
        "without this one",
    ):
        ours.kernel(shapes, recipe(), "cpu")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("bits = 5\ngroup_size = 64", r"\[\[recipe\]\] number 1: bits: .*8, 4, 3 or 2 \(got 5\)"),
        ("bits = 4\ngroup_size = 48", r"number 1: group_size: .*groups of 16, 32, .*\(got 48\)"),
        ("bits = 4\ngroup_size = 64\nkernel = 'dequantize'", r"number 1: kernel: no kernel is "),
        (
            "bits = 4\ngroup_size = 64\ncalibration = 'enwiki-calibrated'",
            r"number 1: calibration: .*did you mean 'enwiki-calibration'",
        ),
    ],
)
def test_recipes_that_are_wrong(tmp_path, toml, message):
    from bitgate import quantize
    from bitgate.catalog import load_entries

    (tmp_path / "recipes.toml").write_text(f"[[recipe]]\nmethod = 'gptq'\n{toml}\n")
    with pytest.raises(CatalogError, match=message):
        load_entries(tmp_path, quantize.recipe_types())


def test_the_text_has_a_default(tmp_path):
    from bitgate import quantize
    from bitgate.catalog import load_entries

    (tmp_path / "recipes.toml").write_text(
        "[[recipe]]\nmethod = 'gptq'\nbits = [4, 3]\ngroup_size = 64\n"
    )
    found = load_entries(tmp_path, quantize.recipe_types())
    for name in ("gptq-w4g64", "gptq-w3g64"):
        assert found.recipes[name].calibration == found.datasets["enwiki-calibration"]
