"""HQQ: sizes from shapes alone, the library's own numbers, files that give back the same logits."""

import json
import struct

import pytest
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from bitgate.kernels.affine import Grouping
from bitgate.kernels.served import tensor_bytes
from bitgate.quantize import QuantizeError, shapes_of
from bitgate.quantize import hqq as ours
from bitgate.quantize.hqq import load, predicted_bytes
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.hqq_sizes import code_bytes, unpackable

TOKENS = torch.arange(24).reshape(2, 12)


def bytes_in_file(path):
    """Of its tensors, as its header says."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    return sum(stop - start for start, stop in (t["data_offsets"] for t in header.values()))


def linears(module):
    return [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]


# --- sizes and files -----------------------------------------------------------------------


def check_size_and_file(base, quantized, serve, path):
    """Sizes measured are those predicted, and a file gives the same tensors back."""
    recipe = quantized.recipe
    shapes = shapes_of(base)
    kernel = ours.kernel(shapes, recipe, "cpu")
    element = next(base.parameters()).element_size()
    predicted = predicted_bytes(shapes, recipe, kernel, element)
    served = quantized.serve(serve(kernel))
    assert served.packed_layers == served.expected_layers == len(quantized.layers)
    assert tensor_bytes(served.module) == served.memory_bytes() == predicted.memory
    quantized.save(path)
    assert bytes_in_file(path) == predicted.tensors
    assert path.stat().st_size == predicted.disk
    again = load(path).serve(serve(kernel))
    assert tensor_bytes(again.module) == predicted.memory
    assert torch.equal(again.logits(TOKENS), served.logits(TOKENS))


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_size_and_file(llama, hqq, execution, tmp_path, bits, axis, group_size):
    base = llama(tie_word_embeddings=bits in (8, 3, 1))  # half of them tied
    recipe = {"bits": bits, "axis": axis, "group_size": group_size, "kernel": "dequantize"}
    quantized = hqq(base, **recipe, solver=False)  # faster, and sizes do not depend on it
    check_size_and_file(base, quantized, execution, tmp_path / "file")


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ({}, {}),
        ({}, {"head": 4}),
        ({"tie_word_embeddings": True}, {"head": 4}),
        ({"tie_word_embeddings": True}, {"head": 3, "bits": 2, "axis": 0}),
        ({"attention_bias": True}, {}),
        ({"attention_bias": True}, {"bits": 3}),
        ({"vocab_size": 500}, {"head": 8}),
        ({}, {"layers": ["*.mlp.*"], "label": "mlp"}),
        ({"intermediate_size": 160, "num_key_value_heads": 1}, {}),  # groups cross rows
        ({"dtype": torch.bfloat16}, {}),
        ({"dtype": torch.float16, "tie_word_embeddings": True}, {"kernel": "dequantize"}),
    ],
    ids=str,
)
def test_size_and_file_of(llama, hqq, execution, tmp_path, model, recipe):
    base = llama(**model)
    check_size_and_file(base, hqq(base, **recipe, solver=False), execution, tmp_path / "file")


@pytest.mark.parametrize(
    ("model", "recipe", "kernel"),
    [
        ({}, {"head": 4}, "cpu-int4"),
        ({}, {"head": 8}, "cpu-int4+cpu-int4x2"),
        ({"vocab_size": 500}, {"head": 8}, "cpu-int4+dequantize"),
        ({}, {"head": 3}, "cpu-int4+dequantize"),
        ({}, {"bits": 8}, "dequantize"),
        ({}, {"head": 8, "kernel": "dequantize"}, "dequantize"),
    ],
    ids=str,
)
def test_a_head_of_other_bits_does_not_take_the_kernel_from_the_rest(llama, model, recipe, kernel):
    recipe = ours.RECIPE(**{"bits": 4, "group_size": 64, **recipe})
    assert ours.kernel(shapes_of(llama(**model)), recipe, "cpu") == kernel


def test_sizes_need_no_weights(llama):
    """Shapes on the meta device predict the same."""
    base = llama(tie_word_embeddings=True)
    with torch.device("meta"):
        empty = type(base)(base.config)
    assert shapes_of(empty) == shapes_of(base)


grouping = st.builds(
    Grouping,
    out_features=st.integers(1, 40),
    in_features=st.integers(1, 40),
    bits=st.sampled_from((8, 4, 3, 2, 1)),
    group_size=st.sampled_from((1, 2, 3, 4, 8, 16, 24, 32)),
    axis=st.sampled_from((0, 1)),
)


@settings(deadline=None, max_examples=200)
@given(grouping)
def test_packing_rules_are_the_librarys(grouping):
    g = grouping
    weight = torch.randn(g.out_features, g.in_features, generator=torch.Generator().manual_seed(0))
    try:
        codes, meta = Quantizer.quantize(
            weight, g.bits, group_size=g.group_size, axis=g.axis, optimize=False, device="cpu"
        )
        # too few rows to fill a byte vanish without an error
        given_back = Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
    except (AssertionError, RuntimeError):
        assert unpackable(g)
        return
    assert unpackable(g) is None
    assert given_back.shape == weight.shape
    assert codes.nbytes == code_bytes(g)


# --- the library's own numbers -------------------------------------------------------------


def error(weight, layer):
    return float((weight.detach() - layer.dequantize()).abs().mean())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_layers_are_the_librarys_own(hqq, bits, axis):
    """The blocks in which the solver runs differ from the whole only in when each one stops."""
    torch.manual_seed(bits)
    base = nn.Sequential(nn.Linear(512, 384))  # three blocks
    config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
    whole = HQQLinear(base[0], config, compute_dtype=torch.float32, device="cpu", del_orig=False)
    layer = hqq(base, bits=bits, axis=axis).layer("0")
    assert type(layer) is HQQLinear
    assert {k: layer.meta[k] for k in ("nbits", "group_size", "axis", "shape", "packing")} == {
        k: whole.meta[k] for k in ("nbits", "group_size", "axis", "shape", "packing")
    }
    assert torch.equal(layer.meta["scale"], whole.meta["scale"])  # the solver leaves it alone
    # a zero in units of codes
    assert (layer.meta["zero"] - whole.meta["zero"]).abs().max() < 0.25
    unpack = Quantizer.unpack[layer.meta["packing"]]
    assert (unpack(layer.W_q) == unpack(whole.W_q)).float().mean() > 0.98
    weight = base[0].weight
    assert error(weight, layer) == pytest.approx(error(weight, whole), rel=5e-4)
    assert torch.equal(layer.bias, base[0].bias)


def test_a_layer_of_one_block_is_the_librarys_to_the_bit(hqq):
    base = nn.Sequential(nn.Linear(128, 64))
    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    whole = HQQLinear(base[0], config, compute_dtype=torch.float32, device="cpu", del_orig=False)
    assert torch.equal(hqq(base).layer("0").dequantize(), whole.dequantize())


def test_the_librarys_solver_is_put_back(hqq):
    from hqq.core.optimize import optimize_weights_proximal

    hqq(nn.Sequential(nn.Linear(128, 64)))
    assert Quantizer.optimize_weights is optimize_weights_proximal


def round_to_nearest(weight, bits, group_size, axis):
    """Each group's smallest and largest weight are the first and the last code; at 4 bits the
    library wants zero itself to be one."""
    groups = weight.reshape(-1, group_size) if axis == 1 else weight.reshape(group_size, -1).T
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    if bits == 4:
        low = (low / step).round() * step
    near = low + ((groups - low) / step).round().clamp(0, 2**bits - 1) * step
    return (near if axis == 1 else near.T).reshape(weight.shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_without_solver_it_rounds_to_nearest(hqq, bits, axis):
    torch.manual_seed(bits)
    base = nn.Sequential(nn.Linear(128, 64, bias=False))
    weight = base[0].weight.detach()
    layer = hqq(base, bits=bits, axis=axis, solver=False).layer("0")
    expected = round_to_nearest(weight, bits, 64, axis)
    # what lies halfway between two codes may go the other way
    off = (layer.dequantize() - expected).abs() > 1e-5
    assert off.float().mean() < 1e-3


def test_the_solver_beats_rounding(hqq):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(512, 128))
    solved, rounded = (hqq(base, bits=3, solver=solver).layer("0") for solver in (True, False))
    assert error(base[0].weight, solved) < error(base[0].weight, rounded)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_affine_is_what_the_layer_computes(llama, hqq, bits):
    quantized = hqq(llama(), bits=bits, group_size=32)
    for name in quantized.layers:
        affine = quantized.affine(name)
        grouped = affine.codes.float().unflatten(1, (-1, 32))
        weight = (grouped - affine.zero[..., None]) * affine.scale[..., None]
        assert affine.codes.dtype == torch.uint8
        assert int(affine.codes.max()) == 2**bits - 1
        assert torch.equal(weight.flatten(1), quantized.layer(name).dequantize())


@pytest.mark.parametrize(("axis", "columns"), [(0, 128), (1, 96)])
def test_no_affine_where_groups_cross_rows(hqq, axis, columns):
    quantized = hqq(nn.Sequential(nn.Linear(columns, 64)), axis=axis)
    with pytest.raises(QuantizeError, match=r"0: .* a group crosses rows"):
        quantized.affine("0")


# --- which layers --------------------------------------------------------------------------


def test_all_linear_layers_but_the_head(llama, hqq):
    base = llama()
    assert sorted(hqq(base).layers) == sorted(linears(base))
    assert len(linears(base)) == 14


def test_layers_are_chosen_by_globs(llama, hqq):
    globs = ["*.0.mlp.*", "*.v_proj"]
    quantized = hqq(llama(), layers=globs, label="some")
    assert set(quantized.layers) == {
        *(f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")),
        *(f"model.layers.{x}.self_attn.v_proj" for x in (0, 1)),
    }
    assert isinstance(quantized.module.model.layers[1].mlp.up_proj, nn.Linear)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_has_its_own_bits(llama, hqq, tied):
    base = llama(tie_word_embeddings=tied)
    quantized = hqq(base, bits=2, head=8)
    assert quantized.layer("lm_head").meta["nbits"] == 8
    assert quantized.layer("model.layers.0.mlp.up_proj").meta["nbits"] == 2
    embedding = quantized.module.model.embed_tokens.weight
    assert embedding.data_ptr() == base.model.embed_tokens.weight.data_ptr()


def test_a_glob_that_matches_nothing(llama, hqq):
    with pytest.raises(
        QuantizeError, match=r"hqq-w4g64-x: layers: no linear .* '\*\.fc1'; there is model\.lay"
    ):
        hqq(llama(), layers=["*.fc1"], label="x")


def test_a_head_that_is_not_there(hqq):
    with pytest.raises(QuantizeError, match="hqq-w4g64-head4: head: the model has no linear"):
        hqq(nn.Sequential(nn.Linear(64, 64)), head=4)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((66, 33), "the group size does not divide the number of weights"),
        ((64, 3), "3 rows cannot be packed 2 to a byte"),
    ],
)
def test_groups_that_cannot_be_packed(hqq, shape, reason):
    with pytest.raises(QuantizeError, match=f"hqq-w4g64: 0: .*groups of 64 on axis 1: {reason}"):
        hqq(nn.Sequential(nn.Linear(*shape)))


# --- beside the base -----------------------------------------------------------------------


def test_what_is_not_quantized_is_shared_and_the_base_stays(llama, hqq, served, execution):
    base = llama(tie_word_embeddings=True, attention_bias=True)
    kept = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    kinds = {name: type(part) for name, part in base.named_modules()}
    before = served(base).logits(TOKENS)
    quantized = hqq(base)
    quantized.serve(execution("cpu-int4"))

    assert {name: type(part) for name, part in base.named_modules()} == kinds
    assert all(torch.equal(tensor, kept[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(served(base).logits(TOKENS), before)
    inside = tuple(f"{name}." for name in quantized.layers)
    rest = {k: t for k, t in quantized.module.state_dict().items() if not k.startswith(inside)}
    assert rest.keys() == {k for k in kept if not k.startswith(inside)}
    pointers = {t.data_ptr() for t in base.state_dict().values()}
    assert all(tensor.data_ptr() in pointers for tensor in rest.values())


def test_the_base_can_be_freed(llama, hqq):
    """A quantized model keeps no weight of the base alive that it does not use."""
    import gc
    import weakref

    base = llama()
    weight = weakref.ref(base.model.layers[0].mlp.up_proj.weight)
    quantized = hqq(base)
    del base
    gc.collect()
    assert weight() is None
    assert quantized.layers


# --- files that are not what they should be ------------------------------------------------


@pytest.fixture
def saved(llama, hqq, tmp_path):
    """A file, and a way to change its tensors and metadata."""
    path = tmp_path / "model.safetensors"
    hqq(llama(attention_bias=True), solver=False).save(path)

    def change(drop="", **metadata):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            kept = {**file.metadata(), **metadata}
        tensors = load_file(path)
        if drop:
            del tensors[drop]
        save_file(tensors, path, kept)
        return path

    return change


@pytest.mark.parametrize(
    "key",
    [
        *(f"model.layers.0.self_attn.q_proj.{x}" for x in ("codes", "scale", "zero", "bias")),
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_a_file_that_lacks_a_tensor(saved, key):
    with pytest.raises(QuantizeError, match=rf"model\.safetensors: the file lacks {key}$"):
        load(saved(drop=key))


def test_a_file_of_another_format(saved):
    with pytest.raises(QuantizeError, match="expected format bitgate-hqq-2, got 'bitgate-hqq-0'"):
        load(saved(format="bitgate-hqq-0"))


def test_a_file_of_somebody_else(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(QuantizeError, match=r"other\.safetensors: expected format .* got None"):
        load(path)


def test_a_file_that_is_no_safetensors(tmp_path):
    path = tmp_path / "text"
    path.write_text("hello, this is not a model")
    with pytest.raises(QuantizeError, match="text: not a safetensors file"):
        load(path)


def test_a_file_remembers_its_recipe(saved):
    assert load(saved()).recipe == HqqRecipe(bits=4, group_size=64, solver=False)
