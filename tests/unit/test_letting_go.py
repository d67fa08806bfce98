"""A base that is used up: the quantized model is the same, and the memory is given back, layer by
layer."""

import gc
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from bitgate.catalog import Model
from bitgate.measure.peak_memory import PROC
from bitgate.quantize import letting_go, method
from bitgate.quantize.gptq import to_work_on
from bitgate.quantize.letting_go import let_go
from bitgate.quantize.linear import quantize_module
from bitgate.quantize.linear_recipe import LinearRecipe
from bitgate.quantize.replaced import left_over
from bitgate.sources import LoadedModel, load_model

MIB = 2**20
TOKENS = torch.arange(16)[None]
RECIPES = [
    {"method": "hqq", "bits": 4, "group_size": 64},
    {"method": "linear", "bits": 4, "group_size": 64},
    {"method": "bitsandbytes", "type": "int8"},
    {"method": "bitsandbytes", "type": "nf4", "double": True},
    {"method": "torchao"},
]
every_recipe = pytest.mark.parametrize(
    "recipe", RECIPES, ids=lambda keys: "-".join(map(str, keys.values()))
)


@pytest.fixture
def quantize():
    """Quantizes a loaded model by a recipe's keys; skips where its library is not installed."""

    def run(base, keys):
        how = method(keys["method"])
        if how.EXTRA is not None and (reason := how.EXTRA.missing()):
            pytest.skip(reason)
        return how.quantize(base, how.RECIPE(**keys), torch.float32)

    return run


@pytest.fixture(scope="module")
def directory(llama, tmp_path_factory):
    """Where transformers has written a model of 14 layers of 1 MiB each."""
    path = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_key_value_heads": 4}
    llama(**sizes, attention_bias=True).save_pretrained(path)
    return path


@pytest.fixture
def load(directory):
    """Loads it as Bitgate does: mapped into memory, in which no other test has left it."""
    gc.collect()
    source = {"kind": "local", "path": directory}
    model = Model.model_validate({"name": "tiny", "family": "llama", "source": source})
    return lambda: load_model(model)


def parts_of(quantized):
    """All that a quantized model consists of."""
    tensors = {f"{name} {p}": t for name in quantized.layers for p, t in parts(quantized, name)}
    inside = tuple(f"{name}." for name in quantized.layers)
    rest = quantized.module.state_dict().items()
    return tensors | {key: tensor for key, tensor in rest if not key.startswith(inside)}


def parts(quantized, name):
    layer = quantized.layer(name)
    bias = {} if layer.bias is None else {"bias": layer.bias}
    return (quantized.codec.tensors(layer) | bias).items()


def check_equal(first, second):
    """Bit by bit."""
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def linears(module):
    """The layers of repeated blocks, which all recipes here replace."""
    return {n: m for n, m in module.model.named_modules() if isinstance(m, nn.Linear)}


def resident(directory):
    """Bytes of a directory's files that this process has in memory."""
    count, ours = 0, False
    for line in (PROC / "smaps").read_text("utf-8", "replace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(directory) in line
        elif ours and line.startswith("Rss:"):
            count += 1024 * int(line.split()[1])
    return count


def read_all(module):
    """Every page of every weight."""
    for parameter in module.parameters():
        float(parameter.sum())


# --- the same model ------------------------------------------------------------------------


@every_recipe
def test_the_quantized_model_is_the_same(load, quantize, recipe):
    kept = quantize(load(), recipe)
    base = load()
    used_up = quantize(replace(base, expendable=True), recipe)
    assert used_up.module is base.module  # no copy of the tree
    assert len(used_up.layers) == 14
    check_equal(parts_of(kept), parts_of(used_up))
    for (first, a), (second, b) in zip(kept.weights(), used_up.weights(), strict=True):
        assert first == second
        assert torch.equal(a, b)
    assert torch.equal(kept.module(TOKENS).logits, used_up.module(TOKENS).logits)


@every_recipe
def test_a_base_that_is_needed_stays_as_it_is(load, quantize, directory, recipe):
    base = load()
    before = {key: tensor.clone() for key, tensor in base.module.state_dict().items()}
    logits, layers = base.module(TOKENS).logits, linears(base.module)
    places = {key: tensor.data_ptr() for key, tensor in base.module.state_dict().items()}
    in_memory = resident(directory)
    quantized = quantize(base, recipe)
    assert resident(directory) >= in_memory
    assert linears(base.module) == layers  # the very same
    after = base.module.state_dict()
    check_equal(before, after)
    assert {key: tensor.data_ptr() for key, tensor in after.items()} == places
    assert torch.equal(base.module(TOKENS).logits, logits)
    assert not torch.equal(quantized.module(TOKENS).logits, logits)


@every_recipe
def test_a_bias_that_was_changed_stays_changed(quantize, tmp_path, recipe):
    """The new layer may have the very tensor, and the file that it is mapped from other numbers."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 4096)  # a bias of four pages
    save_file(dict(layer.state_dict()), tmp_path / "one.safetensors")
    outputs = []
    for expendable in (False, True):
        layer.load_state_dict(load_file(tmp_path / "one.safetensors"), assign=True)
        base = nn.Sequential(layer).requires_grad_(False)
        layer.bias += 1
        made = quantize(LoadedModel(base, None, "", None, expendable), recipe)
        outputs.append(made.module(torch.ones(1, 64)))
    assert torch.equal(*outputs)


# --- layer by layer ------------------------------------------------------------------------


@pytest.fixture
def after_each(monkeypatch):
    """Calls a function whenever a layer has gone, and gathers what it returns."""

    def watch(look):
        seen, trim = [], letting_go.trim

        def then():
            trim()
            seen.append(look())

        monkeypatch.setattr(letting_go, "trim", then)
        return seen

    return watch


@every_recipe
def test_each_layer_goes_before_the_next_one_is_made(load, quantize, directory, after_each, recipe):
    base = load()
    layers = linears(base.module).values()
    weights = [StorageWeakRef(layer.weight.untyped_storage()) for layer in layers]
    del layers
    read_all(base.module)
    before = resident(directory)
    assert before > 14 * MIB  # it is mapped, and all there
    seen = after_each(lambda: ([w.expired() for w in weights], resident(directory)))
    quantize(replace(base, expendable=True), recipe)
    assert [gone for gone, _ in seen] == [[n <= at for n in range(14)] for at in range(14)]
    for at, (_, pages) in enumerate(seen, 1):
        # the system may read so many of a neighbour's pages with one of its own
        assert pages <= before - at * MIB + 2 * MIB


@every_recipe
def test_of_a_mapped_model_never_more_than_a_layer_is_read(
    load, quantize, directory, monkeypatch, recipe
):
    """No pass over all of the weights goes before: the file is never in memory as a whole."""
    base, seen = load(), []
    assert resident(directory) < 3 * MIB

    def look_and_let_go(tensors):
        seen.append(resident(directory))  # while the layer is still there
        let_go(tensors)

    monkeypatch.setattr(letting_go, "let_go", look_and_let_go)
    quantize(replace(base, expendable=True), recipe)
    assert len(seen) == 14
    assert max(seen) < 6 * MIB
    assert min(seen) > MIB


def test_memory_of_its_own_goes_layer_by_layer_too(llama, quantize, after_each):
    base = llama()
    weights = [StorageWeakRef(m.weight.untyped_storage()) for m in linears(base).values()]
    seen = after_each(lambda: sum(w.expired() for w in weights))
    quantize(LoadedModel(base, None, "", None, expendable=True), RECIPES[0])
    assert seen == list(range(1, 15))


def test_integers_throughout(load, after_each):
    recipe = LinearRecipe.model_validate(
        {
            "bits": 8,
            "granularity": "channel",
            "activation_bits": 8,
            "calibration": {
                "name": "enwiki-calibration",
                "source": {"kind": "local", "path": "unused"},
                "format": "plain",
                "tokens": 1,
            },
        }
    )
    kept = quantize_module(load().module, recipe, torch.float32, [TOKENS])
    base = load().module
    weights = [StorageWeakRef(m.weight.untyped_storage()) for m in linears(base).values()]
    seen = after_each(lambda: sum(w.expired() for w in weights))
    used_up = quantize_module(base, recipe, torch.float32, [TOKENS], expendable=True)
    assert used_up.module is base
    assert seen == list(range(1, 15))
    check_equal(parts_of(kept), parts_of(used_up))
    assert torch.equal(kept.module(TOKENS).logits, used_up.module(TOKENS).logits)


class Network(nn.Module):
    """Two convolutions, each followed by a norm that is folded into it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        )
        for norm in (self.body[1], self.body[3]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.body(x)


def test_convolutions_whose_norms_are_folded():
    recipe, images = LinearRecipe(bits=8, granularity="channel"), torch.randn(2, 3, 8, 8)

    def network():
        torch.manual_seed(0)
        return Network().eval().requires_grad_(False)

    base = network()
    kept = quantize_module(base, recipe, torch.float32)
    assert type(base.body[1]) is nn.BatchNorm2d
    base = network()
    weights = [StorageWeakRef(base.body[n].weight.untyped_storage()) for n in range(4)]
    used_up = quantize_module(base, recipe, torch.float32, expendable=True)
    assert used_up.module is base
    assert all(weight.expired() for weight in weights)
    check_equal(kept.module.state_dict(), used_up.module.state_dict())
    assert torch.equal(kept.module(images), used_up.module(images))


def test_gptq_has_a_copy_of_what_is_needed_and_is_handed_over_what_is_not(load, directory):
    base = load()
    state = {key: tensor.clone() for key, tensor in base.module.state_dict().items()}
    layers = [f"model.{name}" for name in linears(base.module)]
    copy = to_work_on(base, layers)
    check_equal(copy.state_dict(), state)
    check_equal(base.module.state_dict(), state)
    used_up = to_work_on(replace(base, expendable=True), layers)
    check_equal(used_up.state_dict(), state)
    assert list(dict(used_up.named_modules())) == list(dict(copy.named_modules()))
    inside = tuple(f"{name}." for name in layers)
    assert not [key for key in base.module.state_dict() if key.startswith(inside)]
    assert resident(directory) < 3 * MIB
    for made in (copy, used_up):  # what it changes is nobody else's
        for parameter in made.parameters():
            parameter.zero_()
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(inside)}
    check_equal(base.module.state_dict(), rest)


# --- what may be given back ----------------------------------------------------------------


def mapped():
    """Resident bytes of mapped files."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return 1024 * int(line.split()[1])
    raise AssertionError


@pytest.fixture
def file(tmp_path):
    """Two weights of 16 MiB each in a file, mapped and resident."""
    tensors = {f"{n}.weight": torch.full((1024, 4096), float(n)) for n in range(2)}
    save_file(tensors, tmp_path / "two.safetensors")
    weights = list(load_file(tmp_path / "two.safetensors").values())
    for weight in weights:
        float(weight.sum())
    return weights


def test_the_pages_of_a_mapped_weight_go_and_its_neighbour_stays(file):
    first, second = file
    before = mapped()
    let_go([first])
    assert before - mapped() == pytest.approx(16 * MIB, rel=0.02)
    assert torch.equal(second, torch.full((1024, 4096), 1.0))
    assert torch.equal(first, torch.full((1024, 4096), 0.0))  # read from the file again


def test_memory_of_its_own_is_never_touched():
    weight = torch.randn(1024, 1024)
    before = weight.clone()
    let_go([weight])
    assert torch.equal(weight, before)


def test_what_a_head_shares_with_the_embedding_is_kept(llama):
    for tied in (True, False):
        module = llama(tie_word_embeddings=tied)
        head, module.lm_head = module.lm_head, nn.Identity()
        assert len(left_over(head, module)) == (0 if tied else 1)


def test_a_bias_that_the_new_layer_has_is_kept():
    module = nn.Sequential(nn.Linear(4, 4))
    layer, module[0] = module[0], nn.Linear(4, 4)
    module[0].bias = layer.bias
    assert [tensor is layer.weight for tensor in left_over(layer, module)] == [True]
