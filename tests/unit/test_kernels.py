"""Kernels: the numbers of the packed one, the choice among them, and what is really served."""

import re
import subprocess
import sys
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from bitgate import kernels
from bitgate.kernels import (
    REFERENCE,
    KernelError,
    choose,
    choose_each,
    cpu_int4,
    cpu_int4x2,
    cpu_int8,
    joined,
    serving,
)
from bitgate.kernels.affine import Affine, Grouping
from bitgate.kernels.cpu_int4 import packed_bytes, refuses
from bitgate.kernels.int4_linear import Int4Linear
from bitgate.kernels.int4x2_linear import Int4x2Linear
from bitgate.kernels.int8_linear import Int8Linear
from bitgate.kernels.served import TorchServed, tensor_bytes

#: bfloat16 keeps 8 bits: rounding to nearest is off by at most half of the last one
ROUNDING = 2.0**-9


def affine(rows, columns, group_size, seed=0):
    """Random 4-bit weights; scale and zero are not representable in bfloat16."""
    torch.manual_seed(seed)
    return Affine(
        Grouping(rows, columns, 4, group_size, 1),
        codes=torch.randint(0, 16, (rows, columns), dtype=torch.uint8),
        scale=torch.rand(rows, columns // group_size) + 0.5,
        zero=15 * torch.rand(rows, columns // group_size),
    )


def parts(weight):
    """What the kernel multiplies and adds, (code - 8) * scale and (8 - zero) * scale, float64."""
    codes = weight.codes.double().unflatten(1, (-1, weight.grouping.group_size))
    scale, zero = weight.scale.double()[..., None], weight.zero.double()[..., None]
    offset = ((8 - zero) * scale).expand_as(codes)
    return ((codes - 8) * scale).flatten(1), offset.flatten(1)


# --- the packed layer's numbers ------------------------------------------------------------


@pytest.mark.parametrize("rows", [16, 48])
@pytest.mark.parametrize("group_size", cpu_int4.GROUP_SIZES)
def test_int4_computes_the_dequantized_product(group_size, rows):
    weight = affine(rows, 512, group_size)
    x = torch.randn(5, 512).bfloat16().float()
    y = Int4Linear(weight, None)(x)
    product, offset = parts(weight)
    expected = x.double() @ (product + offset).T
    # scale, offset and result are each rounded once; fp32 sums add next to nothing
    allowed = ROUNDING * (x.abs().double() @ (product.abs() + offset.abs()).T + expected.abs())
    error = (y - expected).abs()
    assert (error <= 1.01 * allowed).all()
    assert error.max() < 0.01 * expected.abs().max()


def test_int4_is_exact_where_bfloat16_is():
    """Codes are not rounded: with a scale of 1 and whole zeros nothing else is either."""
    weight = affine(32, 64, 32)
    weight = Affine(
        weight.grouping, weight.codes, torch.ones_like(weight.scale), weight.zero.round()
    )
    x = torch.zeros(2, 64)
    x[0, 3], x[1, 40] = 1.0, -2.0
    dequantized = weight.codes.float() - weight.zero.repeat_interleave(32, 1)
    assert torch.equal(Int4Linear(weight, None)(x), x @ dequantized.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int4_takes_any_shape_and_dtype_and_adds_the_bias(dtype):
    weight, bias = affine(32, 64, 32), torch.randn(32, dtype=dtype)
    x = torch.randn(2, 3, 64).to(dtype)
    plain, biased = Int4Linear(weight, None), Int4Linear(weight, bias)
    y = biased(x)
    assert y.shape == (2, 3, 32)
    assert y.dtype == dtype
    assert torch.equal(y, plain(x) + bias)
    assert torch.equal(y[1, 2], biased(x[1, 2]))


def test_int4_logits_differ_no_more_than_a_bfloat16_models(llama, hqq, execution):
    """The same dequantized weights served in bfloat16 round activations at every layer, as the
    kernel does, and weights too. So what bfloat16 is good enough for, the kernel is as well."""
    base = llama()
    quantized = hqq(base, group_size=32)
    tokens = torch.randint(0, 256, (8, 24), generator=torch.Generator().manual_seed(0))
    reference = quantized.serve(execution(REFERENCE)).logits(tokens)
    packed = quantized.serve(execution("cpu-int4")).logits(tokens)

    twin = deepcopy(base)
    for name in quantized.layers:
        twin.get_submodule(name).weight.copy_(quantized.layer(name).dequantize())
    assert torch.allclose(TorchServed(twin, execution()).logits(tokens), reference, atol=1e-4)
    twin.bfloat16()
    twin.model.rotary_emb = base.model.rotary_emb  # which stays float32 in any dtype
    rounded = TorchServed(twin, execution()).logits(tokens).float()

    def off(logits):
        return float((logits - reference).norm() / reference.norm())

    assert 0 < off(packed) < 1.1 * off(rounded) < 0.02


@pytest.mark.parametrize("group_size", cpu_int4.GROUP_SIZES)
def test_packed_bytes_are_those_of_the_buffers(group_size):
    layer = Int4Linear(affine(48, 512, group_size), None)
    assert sum(buffer.nbytes for buffer in layer.buffers()) == packed_bytes(layer.grouping)


# --- int8 ----------------------------------------------------------------------------------


def affine8(rows, columns, symmetric=False, seed=0):
    """Random 8-bit weights of one group per row; the scale is not representable in bfloat16."""
    torch.manual_seed(seed)
    zero = torch.full((rows, 1), 128.0) if symmetric else 255 * torch.rand(rows, 1)
    return Affine(
        Grouping(rows, columns, 8, columns, 1, symmetric),
        codes=torch.randint(0, 256, (rows, columns), dtype=torch.uint8),
        scale=torch.rand(rows, 1) + 0.5,
        zero=zero,
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(16, 512), (7, 48), (1, 16), (40, 576)])
def test_int8_computes_the_dequantized_product(rows, columns, symmetric):
    weight = affine8(rows, columns, symmetric)
    x = torch.randn(5, columns).bfloat16().float()
    y = Int8Linear(weight, None)(x)
    scale = weight.scale.bfloat16().double()  # as it is kept; everything else is exact
    codes = weight.codes.double() - 128
    offset = ((128 - weight.zero.double()) * scale).T
    product = x.double() @ (codes * scale).T
    expected = product + x.double().sum(1, keepdim=True) * offset
    # the sum is rounded, then its product with the scale; fp32 sums add next to nothing
    fp32 = 1e-5 * (x.abs().double().sum(1, keepdim=True) @ (128 * scale.T + offset.abs()))
    assert ((y - expected).abs() <= 2.02 * ROUNDING * product.abs() + fp32).all()
    true = x.double() @ ((weight.codes.double() - weight.zero) * weight.scale.double()).T
    assert (y - true).norm() < 0.01 * true.norm()


def test_int8_is_exact_where_bfloat16_is():
    weight = affine8(32, 64)
    weight = Affine(
        weight.grouping, weight.codes, torch.ones_like(weight.scale), weight.zero.round()
    )
    x = torch.zeros(2, 64)
    x[0, 3], x[1, 40] = 1.0, -2.0
    assert torch.equal(Int8Linear(weight, None)(x), x @ (weight.codes.float() - weight.zero).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_takes_any_shape_and_dtype_and_adds_the_bias(dtype):
    weight, bias = affine8(32, 64), torch.randn(32, dtype=dtype)
    x = torch.randn(2, 3, 64).to(dtype)
    plain, biased = Int8Linear(weight, None), Int8Linear(weight, bias)
    y = biased(x)
    assert y.shape == (2, 3, 32)
    assert y.dtype == dtype
    assert torch.equal(y, plain(x) + bias)


@pytest.mark.parametrize("symmetric", [True, False])
def test_int8s_packed_bytes_are_those_of_the_buffers(symmetric):
    layer = Int8Linear(affine8(48, 512, symmetric), None)
    assert sum(buffer.nbytes for buffer in layer.buffers()) == cpu_int8.packed_bytes(layer.grouping)


@pytest.mark.parametrize(
    ("grouping", "reason"),
    [
        (Grouping(64, 128, 4, 128, 1), "it holds 8-bit codes only"),
        (Grouping(64, 128, 8, 64, 1), "it has one scale per output: .* all 128 inputs"),
        (Grouping(64, 128, 8, 128, 0), "it has one scale per output: .* all 128 inputs"),
        (Grouping(64, 40, 8, 40, 1), "the number of inputs must be a multiple of 16"),
        (Grouping(1, 16, 8, 16, 1), None),
    ],
    ids=str,
)
def test_what_int8_refuses(grouping, reason):
    refused = cpu_int8.refuses(grouping)
    assert refused is None if reason is None else re.match(reason, refused)


def test_inputs_that_int8_refuses_give_wrong_numbers_or_crash():
    """It reads beyond the end of a row, so in a process of its own; 16 times as many are right.
    With AVX2 it reads 8 at a time, and 8 inputs are right too."""
    code = """
import sys, torch
inputs = int(sys.argv[1])
for seed in range(20):
    torch.manual_seed(seed)
    w = torch.randint(-127, 128, (64, inputs), dtype=torch.int8)
    x = torch.randn(1, inputs).bfloat16()
    y = torch.ops.aten._weight_int8pack_mm(x, w, torch.ones(64).bfloat16())
    assert torch.allclose(y.double(), x.double() @ w.double().T, rtol=0.01, atol=0.5)
"""
    right = [
        subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True).returncode == 0
        for n in (8, 128)
    ]
    assert right[1]
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert not right[0]


def test_int8_serves_hqq_of_one_group_per_row_too(llama, hqq, execution):
    """Whoever quantized: 8 bits, one scale per output; here every layer has 128 inputs."""
    from bitgate.quantize import method, shapes_of

    base = llama(intermediate_size=128)
    quantized = hqq(base, bits=8, group_size=128)
    assert method("hqq").kernel(shapes_of(base), quantized.recipe, "cpu") == "cpu-int8"
    tokens = torch.randint(0, 256, (8, 24), generator=torch.Generator().manual_seed(0))
    reference, packed = (quantized.serve(execution(kernel)) for kernel in (REFERENCE, "cpu-int8"))
    assert packed.packed_layers == packed.expected_layers == 14
    logits = reference.logits(tokens)
    assert 0 < (packed.logits(tokens) - logits).norm() / logits.norm() < 0.02


# --- 8 bits in groups, as two halves -------------------------------------------------------


def bytes_in_groups(rows, columns, group_size):
    """Random 8-bit weights; scale and zero are not representable in bfloat16."""
    torch.manual_seed(0)
    return Affine(
        Grouping(rows, columns, 8, group_size, 1),
        codes=torch.randint(0, 256, (rows, columns), dtype=torch.uint8),
        scale=torch.rand(rows, columns // group_size) + 0.5,
        zero=255 * torch.rand(rows, columns // group_size),
    )


@pytest.mark.parametrize("rows", [16, 48])
@pytest.mark.parametrize("group_size", cpu_int4.GROUP_SIZES)
def test_two_halves_compute_the_dequantized_product(group_size, rows):
    weight = bytes_in_groups(rows, 512, group_size)
    x = torch.randn(5, 512).bfloat16().float()
    y = Int4x2Linear(weight, None)(x)
    scale = weight.scale.bfloat16().double().repeat_interleave(group_size, 1)
    off = weight.codes.double() - weight.zero.double().repeat_interleave(group_size, 1)
    expected = x.double() @ (off * scale).T
    # codes and the rounded scale are exact; the offset is rounded to 16 bits, the result once to 8,
    # and sums in fp32 add their part
    offset = (136 - weight.zero.double()).abs().repeat_interleave(group_size, 1) * scale
    sums = x.abs().double() @ (offset * 2.0**-16 + (off * scale).abs() * 1e-6).T
    assert ((y - expected).abs() <= sums + expected.abs() * 2.0**-8).all()


def test_two_halves_are_exact_where_bfloat16_is():
    weight = bytes_in_groups(32, 64, 32)
    weight = Affine(
        weight.grouping, weight.codes, torch.ones_like(weight.scale), weight.zero.round()
    )
    x = torch.zeros(2, 64)
    x[0, 3], x[1, 40] = 1.0, -2.0
    dequantized = weight.codes.float() - weight.zero.repeat_interleave(32, 1)
    assert torch.equal(Int4x2Linear(weight, None)(x), x @ dequantized.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_halves_take_any_shape_and_dtype_and_add_the_bias(dtype):
    weight, bias = bytes_in_groups(32, 64, 32), torch.randn(32, dtype=dtype)
    x = torch.randn(2, 3, 64).to(dtype)
    plain, biased = Int4x2Linear(weight, None), Int4x2Linear(weight, bias)
    assert biased(x).shape == (2, 3, 32)
    assert biased(x).dtype == dtype
    assert torch.equal(biased(x), plain(x) + bias)


@pytest.mark.parametrize("shape", [(16, 64, 32), (48, 512, 64)])
def test_bytes_of_two_halves_are_those_of_the_layer(shape):
    weight = bytes_in_groups(*shape)
    assert tensor_bytes(Int4x2Linear(weight, None)) == cpu_int4x2.packed_bytes(weight.grouping)


def test_two_halves_refuse_what_they_cannot_hold():
    assert cpu_int4x2.refuses(Grouping(48, 128, 8, 64, 1)) is None
    for grouping, reason in (
        (Grouping(48, 128, 4, 64, 1), "it holds 8-bit codes only"),
        (Grouping(48, 128, 8, 64, 0), "groups must run along the inputs"),
        (Grouping(48, 128, 8, 16, 1), "the group size must be one of"),
        (Grouping(48, 96, 8, 64, 1), "the group size must divide the 96 inputs"),
        (Grouping(40, 128, 8, 64, 1), "the number of outputs must be a multiple of 16"),
    ):
        assert cpu_int4x2.refuses(grouping).startswith(reason)


# --- what it refuses -----------------------------------------------------------------------


def try_kernel(grouping):
    """The real kernel on a layer grouped like this, its product beside the right one."""
    g = grouping
    codes = torch.randint(0, 2**g.bits, (g.out_features, g.in_features), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    pairs = torch.zeros(g.in_features // g.group_size, g.out_features, 2).bfloat16()
    pairs[..., 0] = 1
    x = torch.ones(1, g.in_features).bfloat16()
    y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, g.group_size, pairs)
    return y.float(), (codes - 8).sum(1).float()[None]


def test_it_takes_what_it_does_not_refuse():
    grouping = Grouping(48, 128, 4, 64, 1)
    assert refuses(grouping) is None
    y, expected = try_kernel(grouping)
    assert torch.allclose(y, expected, rtol=ROUNDING)


@pytest.mark.parametrize(
    ("grouping", "reason", "error"),
    [
        (Grouping(64, 128, 4, 16, 1), "the group size must be one of 32, 64, 128, 256", "GroupSiz"),
        (Grouping(64, 1024, 4, 512, 1), "the group size must be one of", "GroupSize"),
        (Grouping(64, 96, 4, 64, 1), "the group size must divide the 96 inputs", "K"),
        (Grouping(40, 128, 4, 64, 1), "the number of outputs must be a multiple of 16", "N"),
    ],
    ids=str,
)
def test_what_it_refuses_the_kernel_cannot_take(grouping, reason, error):
    assert refuses(grouping).startswith(reason)
    with pytest.raises(RuntimeError, match=error):
        try_kernel(grouping)


def test_it_refuses_more_bits_which_the_kernel_would_cut_silently():
    grouping = Grouping(64, 128, 8, 64, 1)
    assert refuses(grouping) == "it holds 4-bit codes only"
    y, expected = try_kernel(grouping)
    assert not torch.allclose(y, expected, rtol=0.5)


@pytest.mark.parametrize("bits", [3, 2, 1])
def test_it_refuses_fewer_bits_which_it_would_hold_in_four(bits):
    """They would fit, but no smaller than 4 bits: not what the recipe promises."""
    assert refuses(Grouping(64, 128, bits, 64, 1)) == "it holds 4-bit codes only"
    assert packed_bytes(Grouping(64, 128, bits, 64, 1)) == packed_bytes(Grouping(64, 128, 4, 64, 1))


def test_it_refuses_groups_along_the_outputs(hqq):
    """Of which there is no affine form with one scale per row and group of inputs."""
    assert refuses(Grouping(64, 128, 4, 64, 0)) == "groups must run along the inputs (axis 1)"
    with pytest.raises(RuntimeError, match="a group crosses rows"):
        hqq(nn.Sequential(nn.Linear(128, 64)), axis=0).affine("0")


# --- the choice ----------------------------------------------------------------------------

GOOD, ODD = Grouping(64, 128, 4, 64, 1), Grouping(40, 128, 4, 64, 1)
EIGHT = Grouping(40, 128, 8, 128, 1)


@pytest.mark.parametrize(
    ("wanted", "device", "layers", "chosen"),
    [
        ("auto", "cpu", [GOOD], "cpu-int4"),
        ("auto", "cpu", [GOOD, ODD], REFERENCE),
        ("auto", "cpu", [EIGHT, EIGHT], "cpu-int8"),
        ("auto", "cpu", [GOOD, EIGHT], REFERENCE),
        ("cpu-int8", "cpu", [EIGHT], "cpu-int8"),
        ("auto", "mps", [GOOD], REFERENCE),
        ("cpu-int4", "cpu", [GOOD], "cpu-int4"),
        (REFERENCE, "cpu", [GOOD], REFERENCE),
        (REFERENCE, "mps", [ODD], REFERENCE),
    ],
)
def test_the_choice(wanted, device, layers, chosen):
    assert choose(wanted, device, dict(zip("ab", layers, strict=False))) == chosen


HALVES = Grouping(64, 128, 8, 64, 1)


@pytest.mark.parametrize(
    ("device", "layers", "chosen"),
    [
        ("cpu", [GOOD, GOOD], "cpu-int4"),
        ("cpu", [HALVES, GOOD], "cpu-int4+cpu-int4x2"),
        ("cpu", [GOOD, EIGHT, HALVES, ODD], "cpu-int4+cpu-int8+cpu-int4x2+dequantize"),
        ("cpu", [HALVES], "cpu-int4x2"),
        ("cpu", [ODD], REFERENCE),
        ("cuda:0", [GOOD, HALVES], "gemlite" if find_spec("gemlite") else REFERENCE),
    ],
)
def test_the_choice_for_each_layer(device, layers, chosen):
    assert choose_each(device, dict(zip("abcd", layers, strict=False))) == chosen
    for grouping in layers:  # whatever serves a layer alone serves it among others
        assert serving(chosen, grouping) == choose_each(device, {"alone": grouping})


def test_several_kernels_have_one_name_in_whatever_order():
    assert joined(["dequantize", "cpu-int4", "dequantize"]) == "cpu-int4+dequantize"
    assert serving("cpu-int4", ODD) == "cpu-int4"  # nobody else is asked


def test_8_bits_alone_are_not_put_on_halves_unasked():
    assert choose("auto", "cpu", {"a": HALVES}) == REFERENCE
    assert choose("cpu-int4x2", "cpu", {"a": HALVES}) == "cpu-int4x2"


def test_a_forced_kernel_never_falls_back(llama, hqq):
    from bitgate.quantize import method, shapes_of

    with pytest.raises(KernelError, match=r"cpu-int4 cannot take b, \[40, 128\] at 4 bits, .* 16$"):
        choose("cpu-int4", "cpu", {"a": GOOD, "b": ODD})
    with pytest.raises(KernelError, match="kernel cpu-int4 does not run on cuda:0"):
        choose("cpu-int4", "cuda:0", {"a": GOOD})
    with pytest.raises(KernelError, match="no kernel is called 'int4'; there is cpu-int4"):
        choose("int4", "cpu", {"a": GOOD})

    how = method("hqq")
    recipe = how.RECIPE(bits=2, group_size=64, kernel="cpu-int4")
    with pytest.raises(KernelError, match=r"cpu-int4 cannot take model\.layers\.0\.self_attn"):
        how.kernel(shapes_of(llama()), recipe, "cpu")


def test_every_kernel_offers_the_protocol_and_names_devices_that_there_are():
    for name, (_, devices) in kernels.KERNELS.items():
        module = kernels.kernel(name)
        if name != "gemlite":  # which imports on a GPU only
            assert issubclass(module.layer_class(), nn.Module)
        assert all(
            callable(getattr(module, part))
            for part in ("refuses", "layer_class", "pack", "packed_bytes")
        )
        assert set(devices) <= set(kernels.DEVICES)


# --- serving -------------------------------------------------------------------------------


def continue_greedily(module, tokens, steps):
    """By a whole forward pass for every token, without a cache."""
    for _ in range(steps):
        with torch.inference_mode():
            likeliest = module(tokens, use_cache=False).logits[:, -1].argmax(-1)
        tokens = torch.cat([tokens, likeliest[:, None]], 1)
    return tokens


@pytest.mark.parametrize("kernel", ["torch", REFERENCE, "cpu-int4"])
def test_decoding_is_greedy(llama, hqq, execution, kernel):
    base = llama()
    served = (
        TorchServed(base, execution("torch"))
        if kernel == "torch"
        else hqq(base, group_size=32).serve(execution(kernel))
    )
    for seed in (0, 1):  # a new prompt starts afresh
        prompt = torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(seed))
        served.prefill(prompt, 5)
        first = continue_greedily(served.module, prompt, 1)[:, -1]
        steps = [served.decode_step() for _ in range(4)]
        got = torch.stack([first, *steps], 1)
        expected = continue_greedily(served.module, prompt, 5)[:, 7:]
        assert torch.equal(got, expected)


def test_a_compiled_model_decodes_the_same_and_reuses_its_cache(llama, execution):
    """Without the compiler: what is compiled is the same step, over a cache of fixed size."""
    base = llama()
    with torch.compiler.set_stance("force_eager"):
        served = TorchServed(base, execution("torch", compiled=True))
        caches = []
        for batch in (2, 2, 3):
            prompt = torch.randint(0, 256, (batch, 7), generator=torch.Generator().manual_seed(0))
            served.prefill(prompt, 5)
            caches.append(served._cache)
            steps = torch.stack([served.decode_step() for _ in range(4)], 1)
            assert torch.equal(steps, continue_greedily(base, prompt, 5)[:, 8:])
    assert caches[0] is caches[1], "the same shapes again: nothing to compile again"
    assert caches[1] is not caches[2]


def test_a_step_needs_a_prompt(llama, served):
    with pytest.raises(RuntimeError, match=re.escape("decode_step() comes after prefill()")):
        served(llama()).decode_step()


def test_logits_are_the_modules(llama, served):
    base, tokens = llama(), torch.arange(10).reshape(2, 5)
    with torch.inference_mode():
        assert torch.equal(served(base).logits(tokens), base(tokens).logits)
    assert served(base).vocabulary == 256


@pytest.mark.parametrize("kernel", [REFERENCE, "cpu-int4"])
def test_a_layer_swapped_back_is_seen(llama, hqq, execution, kernel, monkeypatch):
    base = llama()
    quantized = hqq(base, group_size=32)
    assert quantized.serve(execution(kernel)).packed_layers == 14

    def plain(weight, bias):
        return nn.Linear(weight.grouping.in_features, weight.grouping.out_features)

    class Better(Int4Linear):
        """A library's own subclass is not what was asked for either."""

    name = quantized.layers[3]
    if kernel == REFERENCE:
        parent, _, leaf = name.rpartition(".")
        setattr(quantized.module.get_submodule(parent), leaf, base.get_submodule(name))
        expected = 13
    else:
        swaps = iter([plain, Better])
        pack = cpu_int4.pack
        monkeypatch.setattr(cpu_int4, "pack", lambda w, b: next(swaps, pack)(w, b))
        expected = 12
    served = quantized.serve(execution(kernel))
    assert (served.packed_layers, served.expected_layers) == (expected, 14)


def test_both_kernels_can_serve_at_once(llama, hqq, execution):
    quantized = hqq(llama(), group_size=32)
    packed, reference = (quantized.serve(execution(k)) for k in ("cpu-int4", REFERENCE))
    assert packed.packed_layers == reference.packed_layers == 14


# --- bytes ---------------------------------------------------------------------------------


class Holder(nn.Module):
    """Keeps tensors wherever a module can."""

    def __init__(self):
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(10))
        self.register_buffer("buffer", torch.zeros(10, dtype=torch.uint8))
        self.register_buffer("transient", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.plain = torch.zeros(5)
        self.inside = {"meta": {"scale": torch.zeros(2)}, "list": [torch.zeros(1), (self.plain,)]}
        self.again = self.parameter
        self.view = self.parameter[2:4]
        self.child = nn.Linear(2, 3, bias=False)


def test_every_tensor_counts_and_each_storage_once():
    assert tensor_bytes(Holder()) == 40 + 10 + 24 + 20 + 8 + 4 + 24


def test_a_slice_keeps_all_of_its_storage_alive():
    module = nn.Module()
    module.part = torch.zeros(100)[:1]
    assert tensor_bytes(module) == 400


def test_tied_weights_count_once(llama):
    tied, untied = (tensor_bytes(llama(tie_word_embeddings=tie)) for tie in (True, False))
    assert untied - tied == 256 * 128 * 4


def test_rows_are_packed_some_at_a_time_with_the_same_bytes():
    import torch

    from bitgate.kernels import int4_linear

    generator = torch.Generator().manual_seed(0)
    for rows in (16, 48, 64, 240, 256, 272, 512 + 32, 1040, 2048 + 48):
        for columns in (32, 2048):
            codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=generator)
            whole = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
            assert torch.equal(int4_linear.pack_codes(codes), whole), (rows, columns)


def test_the_layout_is_that_of_blocks_found_out():
    """A block's codes lie column by column: the one block that `pack_codes` cuts the rows by."""
    from bitgate.kernels import int4_linear

    block = int4_linear._block()
    assert block in (16, 32, 64)
    codes = torch.randint(0, 16, (block, 32), dtype=torch.int32)
    convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    by_column = [convert(codes[:, at : at + 2].contiguous(), 1).flatten() for at in range(0, 32, 2)]
    assert torch.equal(convert(codes, 1).flatten(), torch.cat(by_column))
