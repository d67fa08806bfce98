"""bitsandbytes: the library's own numbers, sizes from shapes alone, files that give the same
logits; and what the library does to its weights on some CPUs."""

import json
import struct

import pytest

pytest.importorskip("bitsandbytes")

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import norm
from torch import nn

from bitgate.catalog import CatalogError, Execution, parse
from bitgate.kernels import KernelError, NotHereError
from bitgate.quantize import QuantizeError, kernel_names, shapes_of
from bitgate.quantize import bitsandbytes as ours
from bitgate.quantize.bitsandbytes_recipe import KERNEL, PACKED, BitsAndBytesRecipe
from bitgate.quantize.bitsandbytes_sizes import code_bytes, statistics_bytes
from bitgate.quantize.shapes import LinearShape

TOKENS = torch.arange(24).reshape(2, 12)
KINDS = [
    {"type": "int8"},
    {"type": "nf4"},
    {"type": "nf4", "double": True},
    {"type": "fp4"},
    {"type": "fp4", "double": True},
]
needs_avx512_bf16 = pytest.mark.skipif(
    not ours.has_avx512_bf16(), reason="this CPU has no AVX512-BF16"
)


@pytest.fixture(scope="session")
def quantize(loaded):
    def run(module, **recipe):
        dtype = next(module.parameters()).dtype
        return ours.quantize(loaded(module), BitsAndBytesRecipe(**recipe), dtype)

    return run


def bytes_in_file(path):
    """Of its tensors, as its header says."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    return sum(stop - start for start, stop in (t["data_offsets"] for t in header.values()))


# --- recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "name", "bits", "group_size"),
    [
        ({"type": "int8"}, "bitsandbytes-int8", 8, None),
        ({"type": "int8", "threshold": 0.0}, "bitsandbytes-int8-t0", 8, None),
        ({"type": "nf4"}, "bitsandbytes-nf4", 4, 64),
        ({"type": "nf4", "double": True}, "bitsandbytes-nf4-double", 4, 64),
        ({"type": "fp4", "kernel": KERNEL}, "bitsandbytes-fp4-bitsandbytes", 4, 64),
        ({"type": "fp4", "first_blocks": 2}, "bitsandbytes-fp4-first2blocks", 4, 64),
    ],
)
def test_names_and_bits(keys, name, bits, group_size):
    recipe = BitsAndBytesRecipe(**keys)
    assert (recipe.name, recipe.bits, recipe.group_size) == (name, bits, group_size)
    again = BitsAndBytesRecipe.model_validate_json(recipe.model_dump_json(exclude_defaults=True))
    assert again == recipe


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"type": "nf5"}, r"here: type: .*'nf4'"),
        ({"type": "nf4", "bits": 8}, r"bits: type 'nf4' has 4; leave the key out"),
        ({"type": "int8", "double": True}, "double: for nf4 and fp4 only"),
        ({"type": "nf4", "threshold": 3.0}, "threshold: for int8 only"),
        ({"type": "int8", "kernel": PACKED}, f"'{PACKED}' does not serve int8"),
        ({"type": "nf4", "kernel": "cpu-int4"}, "'cpu-int4' does not serve nf4"),
    ],
)
def test_recipes_that_make_no_sense(keys, message):
    with pytest.raises(CatalogError, match=message):
        parse(BitsAndBytesRecipe, {"method": "bitsandbytes", **keys}, "here")


# --- the library's own numbers -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_4_bit_layers_are_the_librarys_to_the_bit(quantize, execution, kind, double):
    """As its documentation makes them: weights loaded, then moved to a device."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(128, 96))
    library = bnb.nn.Linear4bit(
        128, 96, compute_dtype=torch.float32, compress_statistics=double, quant_type=kind
    )
    library.load_state_dict(base[0].state_dict())
    library = library.to("cpu").eval()
    library.support_avx512bf16_for_cpu = False
    quantized = quantize(base, type=kind, double=double)
    layer = quantized.layer("0")
    assert torch.equal(layer.weight.data, library.weight.data)
    x = torch.randn(5, 128)
    with torch.inference_mode():
        assert torch.equal(layer(x), library(x))
        weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.allclose(layer(x), nn.functional.linear(x, weight, base[0].bias), atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_layers_are_the_librarys_to_the_bit(quantize, threshold):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(128, 96))
    library = bnb.nn.Linear8bitLt(128, 96, has_fp16_weights=False, threshold=threshold)
    library.load_state_dict(base[0].state_dict())
    library = library.to("cpu").eval()
    x = torch.randn(5, 128)
    x[:, 7] = 20.0  # an outlier
    layer = quantize(base, type="int8", threshold=threshold).layer("0")
    with torch.inference_mode():
        assert torch.equal(layer(x), library(x))


def test_int8_rounds_each_row_to_its_largest_weight(quantize):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(128, 96, bias=False))
    state = quantize(base, type="int8").layer("0").state
    weight = base[0].weight.detach().half().float()
    largest = weight.abs().amax(1)
    assert torch.equal(state.SCB, largest)
    expected = (weight * (127 / largest[:, None])).round()
    assert (state.CB - expected).abs().max() <= 1  # halfway between two codes
    assert (expected == state.CB).float().mean() > 0.999


def test_outliers_stay_in_floating_point(quantize):
    """What LLM.int8() is about: without it one large input takes the others' precision."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(128, 96, bias=False))
    x = torch.randn(5, 128)
    x[:, 7] = 60.0
    with torch.inference_mode():
        errors = [
            (quantize(base, type="int8", threshold=t).layer("0")(x) - base(x)).abs().mean()
            for t in (6.0, 0.0)
        ]
    assert errors[0] < errors[1] / 5


def test_nf4_is_made_of_a_normal_distributions_quantiles(quantize):
    """QLoRA, section 3 and appendix E: 8 quantiles below zero and 9 above, which share zero."""
    state = quantize(nn.Sequential(nn.Linear(64, 64)), type="nf4").layer("0").weight.quant_state
    import numpy as np

    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, [0], below])) / above.max()
    assert state.code.numpy() == pytest.approx(expected, abs=1e-6)


# --- sizes and files -----------------------------------------------------------------------


def check_size_and_file(base, quantized, path, kernel=None):
    """Sizes measured are those predicted, and a file gives the same tensors back."""
    recipe = quantized.recipe
    shapes = shapes_of(base)
    kernel = kernel or ours.kernel(shapes, recipe, "cpu")
    element = next(base.parameters()).element_size()
    predicted = ours.predicted_bytes(shapes, recipe, kernel, element)
    execution = Execution("cpu", "float32", 1, kernel)
    served = quantized.serve(execution)
    logits = served.logits(TOKENS)
    assert served.packed_layers == served.expected_layers == len(quantized.layers)
    assert served.memory_bytes() == predicted.memory
    quantized.save(path)  # after it was used
    assert bytes_in_file(path) == predicted.tensors
    assert path.stat().st_size == predicted.disk
    loaded = ours.load(path)
    again = loaded.serve(execution)
    assert again.packed_layers == again.expected_layers == len(quantized.layers)
    assert torch.equal(again.logits(TOKENS), logits)
    assert again.memory_bytes() == predicted.memory
    loaded.save(path.with_suffix(".again"))
    first, second = load_file(path), load_file(path.with_suffix(".again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"dtype": torch.bfloat16},
        {"intermediate_size": 200, "num_key_value_heads": 1},  # blocks cross rows
    ],
    ids=str,
)
def test_size_and_file(llama, quantize, tmp_path, kind, model):
    base = llama(**model)
    check_size_and_file(base, quantize(base, **kind), tmp_path / "file")


@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_size_and_file_on_the_plain_kernel(llama, quantize, tmp_path, kind):
    base = llama()
    check_size_and_file(base, quantize(base, **kind, kernel=KERNEL), tmp_path / "f", KERNEL)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 64), (65, 129), (300, 300)])
def test_any_shape(quantize, kind, shape):
    """Counted by hand: the tensors of one layer."""
    base = nn.Sequential(nn.Linear(*shape, bias=False))
    quantized = quantize(base, **kind)
    layer, linear = quantized.layer("0"), LinearShape("0", shape[1], shape[0], bias=False)
    parts = {k: t.nbytes for k, t in quantized.codec.tensors(layer).items()}
    recipe = quantized.recipe
    assert parts.pop("codes") == code_bytes(linear, recipe)
    assert sum(parts.values()) == statistics_bytes(linear, recipe)


def test_published_sizes_of_opt_350m():
    """Which count neither maxima nor code maps: 359.354368 and 207.835136 MB in 16 bits."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=50272,
        hidden_size=1024,
        word_embed_proj_dim=512,
        num_hidden_layers=24,
        ffn_dim=4096,
        num_attention_heads=16,
        max_position_embeddings=2048,
        do_layer_norm_before=False,
    )
    with torch.device("meta"):
        shapes = shapes_of(OPTForCausalLM(config))
    for keys, published in (({"type": "int8"}, 359354368), ({"type": "nf4"}, 207835136)):
        recipe = BitsAndBytesRecipe(**keys)
        layers = recipe.selected(shapes)
        counted = sum(statistics_bytes(layer, recipe) for layer in layers)
        predicted = ours.predicted_bytes(shapes, recipe, KERNEL, 2)
        assert predicted.tensors - counted == published
        assert counted > 0


def test_the_base_stays_and_can_be_freed(llama, quantize, served):
    import gc
    import weakref

    base = llama(tie_word_embeddings=True)
    kept = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before = served(base).logits(TOKENS)
    made = [quantize(base, **kind) for kind in KINDS]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(served(base).logits(TOKENS), before)
    weight = weakref.ref(base.model.layers[0].mlp.up_proj.weight)
    del base
    gc.collect()
    assert weight() is None
    assert made[0].layers


def test_a_file_of_another_method(llama, hqq, tmp_path):
    hqq(llama(), solver=False).save(tmp_path / "file")
    expected = "expected format bitgate-bitsandbytes-4bit-1 or bitgate-bitsandbytes-int8-1"
    with pytest.raises(QuantizeError, match=f"{expected}, got 'bitgate-hqq-2'"):
        ours.load(tmp_path / "file")


def test_a_file_that_lacks_a_part(llama, quantize, tmp_path):
    path = tmp_path / "file"
    quantize(llama(), type="nf4", double=True).save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.nested_absmax"]
    save_file(tensors, path, metadata)
    with pytest.raises(QuantizeError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.nested_absmax"):
        ours.load(path)


# --- kernels -------------------------------------------------------------------------------


def test_the_kernel_follows_the_cpu(monkeypatch, llama):
    shapes = shapes_of(llama())
    odd = shapes_of(llama(intermediate_size=200))
    recipe = BitsAndBytesRecipe(type="nf4")
    monkeypatch.setattr(ours, "has_avx512_bf16", lambda: True)
    assert ours.kernel(shapes, recipe, "cpu") == PACKED
    assert ours.kernel(shapes, recipe, "cuda:0") == KERNEL
    assert ours.kernel(odd, recipe, "cpu") == KERNEL
    assert ours.kernel(shapes, BitsAndBytesRecipe(type="int8"), "cpu") == KERNEL
    assert ours.kernel(shapes, BitsAndBytesRecipe(type="nf4", kernel=KERNEL), "cpu") == (KERNEL)
    forced = BitsAndBytesRecipe(type="nf4", kernel=PACKED)
    with pytest.raises(KernelError, match=r"cannot take model\.layers\.0\.mlp\.\w+: .* of 32"):
        ours.kernel(odd, forced, "cpu")
    monkeypatch.setattr(ours, "has_avx512_bf16", lambda: False)
    assert ours.kernel(shapes, recipe, "cpu") == KERNEL
    with pytest.raises(NotHereError, match="CPUs with AVX512-BF16 only"):
        ours.kernel(shapes, forced, "cpu")
    # whatever the CPU, these layers do not fit
    with pytest.raises(KernelError, match=r"cannot take model\.layers\.0\.mlp\.\w+: .* of 32"):
        ours.kernel(odd, forced, "cpu")
    assert {KERNEL, PACKED} <= set(kernel_names())


def test_flags_of_a_cpu(tmp_path):
    for flags, able in (("fpu avx512f avx512_bf16", True), ("fpu avx512f", False)):
        (tmp_path / flags).write_text(f"model name: x\nflags\t\t: {flags}\n")
        assert ours.has_avx512_bf16(tmp_path / flags) is able
    assert ours.has_avx512_bf16(tmp_path / "none") is False


def test_what_the_library_says_of_this_cpu():
    """/proc/cpuinfo is asked during collection; the library asks the processor."""
    assert ours.has_avx512_bf16() == bool(functional.has_avx512bf16())


@needs_avx512_bf16
def test_the_packed_kernel_leaves_what_was_quantized(llama, quantize, served):
    """The library itself overwrites maxima by rounded ones when it packs."""
    base = llama()
    quantized = quantize(base, type="nf4", double=True)
    layer = quantized.layer("model.layers.0.mlp.up_proj")
    before = {k: t.clone() for k, t in quantized.codec.tensors(layer).items()}
    packed = quantized.serve(Execution("cpu", "float32", 1, PACKED))
    plain = quantized.serve(Execution("cpu", "float32", 1, KERNEL))
    assert packed.packed_layers == plain.packed_layers == 14
    after = quantized.codec.tensors(layer)
    assert all(torch.equal(before[key], after[key]) for key in before)
    logits = packed.logits(TOKENS), plain.logits(TOKENS)
    assert not torch.equal(*logits)  # it computes in bfloat16
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[1].abs().max()


@needs_avx512_bf16
def test_a_library_that_does_not_pack_is_seen(llama, quantize, monkeypatch):
    quantized = quantize(llama(), type="nf4")
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: False)
    served = quantized.serve(Execution("cpu", "float32", 1, PACKED))
    assert (served.packed_layers, served.expected_layers) == (0, 14)


def test_a_layer_that_was_left_alone_is_seen(llama, quantize):
    quantized = quantize(llama(), type="int8")
    quantized.module.model.layers[0].mlp.up_proj = nn.Linear(128, 256)
    served = quantized.serve(Execution("cpu", "float32", 1, KERNEL))
    assert (served.packed_layers, served.expected_layers) == (13, 14)


# --- nf4 against linear 4 bits -------------------------------------------------------------


def evenly_spaced(weight):
    """Symmetric, with one maximum a block as NF4 has: codes -7 to 7."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True) / 7
    return ((blocks / scale).round() * scale).reshape(weight.shape)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(1e-3, 1e2))
def test_nf4_is_for_normal_weights(seed, spread):
    """Lower error than evenly spaced codes on normal weights, higher on uniform ones."""
    generator = torch.Generator().manual_seed(seed)
    normal = spread * torch.randn(64, 512, generator=generator)
    uniform = spread * (2 * torch.rand(64, 512, generator=generator) - 1)

    def error_over_evenly_spaced(weight):
        nf4 = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
        return (nf4 - weight).pow(2).mean() / (evenly_spaced(weight) - weight).pow(2).mean()

    assert error_over_evenly_spaced(normal) < 0.95
    assert error_over_evenly_spaced(uniform) > 1.05
