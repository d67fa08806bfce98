"""Method `linear`: what a recipe may say, sizes from shapes alone, layers, files that give back the
same logits; linear and convolution layers, weights only and integers throughout."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bitgate.catalog import Dataset
from bitgate.kernels import KernelError
from bitgate.kernels.served import tensor_bytes
from bitgate.quantize import QuantizeError, shapes_of
from bitgate.quantize import linear as ours
from bitgate.quantize.batch_norm import folded, followers
from bitgate.quantize.linear import load, predicted_bytes, quantize_module
from bitgate.quantize.linear_layers import DequantizedLayer, IntegerLayer
from bitgate.quantize.linear_math import quantize_weight
from bitgate.quantize.linear_recipe import LinearRecipe
from bitgate.quantize.linear_sizes import plans
from bitgate.quantize.lock import LockedModel
from bitgate.sources import LoadedModel

TOKENS = torch.arange(24).reshape(2, 12)
TEXT = Dataset.model_validate(
    {
        "name": "enwiki-calibration",
        "source": {"kind": "local", "path": "text"},
        "format": "plain",
        "tokens": 64,
        "window": 16,
    }
)
INTEGERS = {"bits": 8, "granularity": "channel", "activation_bits": 8, "calibration": TEXT}


@pytest.fixture(scope="module")
def quantized(loaded):
    """Quantizes a module: integers are calibrated on random tokens."""

    def make(module, **recipe):
        recipe = LinearRecipe(**recipe)
        generator = torch.Generator().manual_seed(0)
        batches = torch.randint(0, 256, (8, 16), generator=generator).split(4)
        return quantize_module(module, recipe, next(module.parameters()).dtype, batches)

    return make


def bytes_in_file(path):
    """Of its tensors, as its header says."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    return sum(stop - start for start, stop in (t["data_offsets"] for t in header.values()))


def linears(module):
    return [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]


# --- recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"bits": 8, "granularity": "channel"}, "linear-w8-channel"),
        ({"bits": 8, "granularity": "tensor"}, "linear-w8-tensor"),
        ({"bits": 4, "group_size": 64}, "linear-w4g64"),
        ({"bits": 4, "group_size": 64, "symmetric": True}, "linear-w4g64-symmetric"),
        ({"bits": 5, "group_size": 32, "head": 8}, "linear-w5g32-head8"),
        (INTEGERS, "linear-w8a8-channel"),
        ({**INTEGERS, "percentile": 99.9}, "linear-w8a8-channel-p99.9"),
        ({**INTEGERS, "calibration": TEXT.model_copy(update={"name": "prose"})},
         "linear-w8a8-channel-prose"),
        ({"bits": 8, "granularity": "channel", "first_linears": 10},
         "linear-w8-channel-first10linears"),
        ({"bits": 4, "group_size": 64, "kernel": "dequantize"}, "linear-w4g64-dequantize"),
    ],
)  # fmt: skip
def test_names(keys, name):
    assert LinearRecipe(**keys).name == name


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bits": 8}, "either `granularity`, tensor or channel, or `group_size`"),
        ({"bits": 8, "granularity": "channel", "group_size": 64}, "either `granularity`"),
        ({"bits": 9, "granularity": "channel"}, "bits"),
        ({"bits": 1, "granularity": "channel"}, "bits"),
        ({"bits": True, "granularity": "channel"}, "bits"),
        ({"bits": 8, "granularity": "row"}, "granularity"),
        ({**INTEGERS, "calibration": None}, "needs `calibration`"),
        ({**INTEGERS, "granularity": None, "group_size": 64}, "does not go with `group_size`"),
        ({**INTEGERS, "head": 8}, "`head` does not go with `activation_bits`"),
        ({**INTEGERS, "kernel": "cpu-int8"}, "the kernel is integer"),
        ({**INTEGERS, "percentile": 50}, "percentile"),
        ({**INTEGERS, "activation_bits": None}, "`calibration` is for activations"),
        ({"bits": 8, "granularity": "channel", "kernel": "integer"}, "needs `activation_bits`"),
        ({"bits": 8, "granularity": "channel", "kernel": "cpu-int7"}, "cpu-int7.*cpu-int"),
    ],
)
def test_recipes_that_make_no_sense(keys, message):
    with pytest.raises(ValueError, match=message):
        LinearRecipe(**keys)


# --- published sizes, from shapes alone ----------------------------------------------------


@pytest.fixture(scope="module")
def opt():
    """OPT-350m without its weights."""
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
        return shapes_of(OPTForCausalLM(config))


@pytest.mark.parametrize(
    ("selection", "megabytes"), [({}, 416.56), ({"first_linears": 10}, 1277.65)]
)
def test_published_sizes_of_opt_350m(opt, selection, megabytes):
    """int8 written by hand: codes, a float32 scale per output, everything else in float32."""
    recipe = LinearRecipe(bits=8, granularity="channel", symmetric=True, **selection)
    size = predicted_bytes(opt, recipe, "dequantize", element=4)
    assert round(size.tensors / 1e6, 2) == megabytes


def test_the_first_of_ten_are_what_projects_in_and_out_and_a_block_and_a_half(opt):
    recipe = LinearRecipe(bits=8, granularity="channel", first_linears=10)
    names = list(plans(opt, recipe))
    assert len(names) == 10
    assert names == [linear.name for linear in opt.linears[:10]]


# --- sizes and files -----------------------------------------------------------------------


def check_size_and_file(base, made, serve, path):
    """Sizes measured are those predicted, and a file gives the same tensors back."""
    recipe, shapes = made.recipe, shapes_of(base)
    kernel = ours.kernel(shapes, recipe, "cpu")
    element = next(base.parameters()).element_size()
    predicted = predicted_bytes(shapes, recipe, kernel, element)
    served = made.serve(serve(kernel))
    assert served.packed_layers == served.expected_layers == len(made.layers) > 0
    assert tensor_bytes(served.module) == served.memory_bytes() == predicted.memory
    made.save(path)
    assert bytes_in_file(path) == predicted.tensors
    assert path.stat().st_size == predicted.disk
    again = load(path).serve(serve(kernel))
    assert tensor_bytes(again.module) == predicted.memory
    assert torch.equal(again.logits(TOKENS), served.logits(TOKENS))
    assert load(path).recipe == recipe
    return kernel


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("how", [{"granularity": "tensor"}, {"granularity": "channel"},
                                 {"group_size": 32}], ids=str)  # fmt: skip
@pytest.mark.parametrize("bits", range(2, 9))
def test_size_and_file(llama, quantized, execution, tmp_path, bits, how, symmetric):
    base = llama(tie_word_embeddings=bits % 2 == 0)
    made = quantized(base, bits=bits, symmetric=symmetric, kernel="dequantize", **how)
    assert check_size_and_file(base, made, execution, tmp_path / "file") == "dequantize"


@pytest.mark.parametrize(
    ("model", "recipe", "kernel"),
    [
        ({}, {"bits": 4, "group_size": 32}, "cpu-int4"),
        ({}, {"bits": 4, "group_size": 64, "symmetric": True}, "cpu-int4"),
        ({}, {"bits": 8, "granularity": "channel"}, "cpu-int8"),
        ({}, {"bits": 8, "granularity": "tensor"}, "cpu-int8"),
        ({"attention_bias": True}, {"bits": 8, "granularity": "channel", "symmetric": True},
         "cpu-int8"),
        ({"tie_word_embeddings": True}, {"bits": 8, "granularity": "channel", "head": 8},
         "cpu-int8"),
        ({}, {"bits": 4, "granularity": "channel", "head": 8}, "cpu-int4+cpu-int8"),
        ({"tie_word_embeddings": True}, {"bits": 4, "group_size": 32, "head": 8},
         "cpu-int4+cpu-int4x2"),
        ({}, {"bits": 8, "granularity": "channel", "head": 3}, "cpu-int8+dequantize"),
        ({"dtype": torch.bfloat16}, {"bits": 8, "granularity": "tensor"}, "cpu-int8"),
        ({"attention_bias": True}, {"bits": 3, "group_size": 8}, "dequantize"),
        ({"dtype": torch.bfloat16}, {"bits": 8, "granularity": "channel"}, "cpu-int8"),
        ({"dtype": torch.bfloat16, "attention_bias": True}, {"bits": 5, "group_size": 16},
         "dequantize"),
        ({}, {"bits": 8, "granularity": "channel", "first_linears": 3}, "cpu-int8"),
        ({}, {"bits": 8, "granularity": "channel", "first_blocks": 1}, "cpu-int8"),
        ({}, INTEGERS, "integer"),
        ({"attention_bias": True}, {**INTEGERS, "symmetric": True}, "integer"),
        ({"attention_bias": True, "dtype": torch.bfloat16}, INTEGERS, "integer"),
        ({}, {**INTEGERS, "bits": 4, "granularity": "tensor"}, "integer"),
        ({}, {**INTEGERS, "activation_bits": 6, "percentile": 99.9}, "integer"),
    ],
    ids=str,
)  # fmt: skip
def test_size_and_file_of(llama, quantized, execution, tmp_path, model, recipe, kernel):
    base = llama(**model)
    made = quantized(base, **recipe)
    assert check_size_and_file(base, made, execution, tmp_path / "file") == kernel


@pytest.mark.parametrize("recipe", [INTEGERS, {"bits": 5, "group_size": 16}], ids=str)
def test_in_bfloat16_to_the_byte(llama, quantized, tmp_path, recipe):
    """From shapes that know no dtype, as those of a configuration."""
    with torch.device("meta"):
        shapes = shapes_of(llama(attention_bias=True)).in_dtype("bfloat16")
    made = quantized(llama(attention_bias=True, dtype=torch.bfloat16), **recipe)
    made.save(tmp_path / "file")
    predicted = predicted_bytes(shapes, made.recipe, "dequantize", 2)
    assert (tmp_path / "file").stat().st_size == predicted.disk


def test_layers_hold_what_the_arithmetic_says(llama, quantized):
    base = llama(attention_bias=True)
    made = quantized(base, bits=3, group_size=16)
    assert sorted(made.layers) == sorted(linears(base))
    for name in made.layers:
        layer, original = made.layer(name), base.get_submodule(name)
        expected = quantize_weight(original.weight, 16, 3, False, torch.float32).dequantize()
        assert type(layer) is DequantizedLayer
        assert torch.equal(layer.quantized_weight().dequantize(), expected)
        x = torch.randn(2, 5, original.in_features)
        y = nn.functional.linear(x, expected, original.bias)
        assert torch.allclose(layer(x), y, atol=1e-5)


@pytest.mark.parametrize("how", [{"granularity": "tensor"}, {"granularity": "channel"},
                                 {"group_size": 32}], ids=str)  # fmt: skip
@pytest.mark.parametrize("symmetric", [True, False])
def test_affine_is_what_the_layer_computes(llama, quantized, how, symmetric):
    made = quantized(llama(), bits=6, symmetric=symmetric, **how)
    for name in made.layers:
        affine = made.affine(name)
        grouped = affine.codes.float().unflatten(1, (-1, affine.grouping.group_size))
        weight = (grouped - affine.zero[..., None]) * affine.scale[..., None]
        assert affine.grouping.symmetric is symmetric
        assert torch.equal(weight.flatten(1), made.layer(name).quantized_weight().dequantize())


@pytest.mark.parametrize("part", ["codes", "scale", "zero", "bias"])
def test_a_file_that_lacks_a_tensor(llama, quantized, tmp_path, part):
    from safetensors import safe_open

    path = tmp_path / "model.safetensors"
    quantized(llama(attention_bias=True), bits=4, group_size=32).save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    key = f"model.layers.0.self_attn.q_proj.{part}"
    del tensors[key]
    save_file(tensors, path, metadata)
    with pytest.raises(QuantizeError, match=rf"the file lacks {key}$"):
        load(path)
    save_file(tensors, path, {**metadata, "format": "bitgate-hqq-2"})
    with pytest.raises(QuantizeError, match="bitgate-linear-1 or bitgate-linear-integer-1, got"):
        load(path)


# --- what cannot be ------------------------------------------------------------------------


def test_a_group_size_that_does_not_divide_names_what_all_inputs_are_multiples_of(llama):
    shapes = shapes_of(llama())  # 128 and 256 inputs
    recipe = LinearRecipe(bits=4, group_size=48)
    with pytest.raises(
        QuantizeError,
        match=r"linear-w4g48: group_size: 48 does not divide the 128 inputs of model\.layers\.0.*"
        "all inputs are multiples of 128$",
    ):
        ours.kernel(shapes, recipe, "cpu")


def test_sums_that_no_int32_holds():
    shapes = shapes_of(nn.Sequential(nn.Linear(33_026, 2, device="meta")))
    with pytest.raises(QuantizeError, match="linear-w8a8-channel: 0: a sum over 33026 inputs may"):
        ours.kernel(shapes, LinearRecipe(**INTEGERS), "cpu")
    assert ours.kernel(shapes, LinearRecipe(**INTEGERS, symmetric=True), "cpu") == "integer"


def test_kernels_that_cannot_serve(llama, network):
    recipe = LinearRecipe(**INTEGERS)
    with pytest.raises(
        KernelError, match=r"linear-w8a8-channel: .* integer does not run on cuda:0"
    ):
        ours.kernel(shapes_of(llama()), recipe, "cuda:0")
    recipe = LinearRecipe(bits=8, granularity="channel", kernel="cpu-int8")
    with pytest.raises(
        KernelError, match=r"kernel cpu-int8 cannot take body\.0: it is a convolution"
    ):
        ours.kernel(shapes_of(network), recipe, "cpu")
    recipe = LinearRecipe(bits=4, granularity="channel", kernel="cpu-int8")
    with pytest.raises(KernelError, match="it holds 8-bit codes only"):
        ours.kernel(shapes_of(llama()), recipe, "cpu")


def test_a_head_that_is_not_there(quantized):
    with pytest.raises(QuantizeError, match="linear-w4g32-head4: head: the model has no linear"):
        quantized(nn.Sequential(nn.Linear(64, 64)), bits=4, group_size=32, head=4)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(quantized, bad):
    base = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).requires_grad_(False)
    base[1].weight[3, 4] = bad
    with pytest.raises(QuantizeError, match="linear-w4g32: 1: a weight is not finite"):
        quantized(base, bits=4, group_size=32)


def test_padding_that_is_not_zeros(quantized):
    base = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(QuantizeError, match="linear-w8-channel: 0: padding_mode 'reflect'"):
        quantized(base, bits=8, granularity="channel")


# --- convolutions and batch norms ----------------------------------------------------------


class Network(nn.Module):
    """Convolutions of every kind; norms that can be folded (after 0 and 2) and that cannot: after
    `branch`, what the convolution gives is used twice."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.depthwise = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 16, 1)
        self.not_alone = nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x):
        x = self.body(x)
        x = torch.relu(self.norm(self.depthwise(x)))
        y = self.branch(x)
        x = torch.relu(self.not_alone(y) + y)
        return self.classifier(x.mean((2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = Network()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias, 0, 0.3)
    return net.eval().requires_grad_(False)


IMAGES = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
LAYERS = ("body.0", "depthwise", "branch", "classifier")


def test_norms_are_folded_where_they_alone_follow_a_convolution(network):
    assert followers(network) == {"body.0": "body.1", "depthwise": "norm"}
    assert followers(nn.Sequential(nn.Linear(2, 2))) == {}


def test_norms_of_convolutions_that_are_used_twice_are_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x)))

    assert followers(Twice()) == {}


def test_norms_of_a_model_that_cannot_be_traced_are_left_alone():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    assert followers(Branching()) == {}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_is_torchs(network, bias, affine):
    convolution, norm = nn.Conv2d(3, 16, 3, bias=bias), nn.BatchNorm2d(16, affine=affine).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    made, theirs = folded(convolution, norm), fuse_conv_bn_eval(convolution.eval(), norm)
    assert torch.allclose(made.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(made.bias, theirs.bias, atol=1e-6)
    x = torch.randn(2, 3, 5, 5)
    assert torch.allclose(made(x), norm(convolution(x)), atol=1e-5)
    assert not bias or made.bias is not convolution.bias


@pytest.mark.parametrize(
    "how",
    [
        {"granularity": "tensor"},
        {"granularity": "channel"},
        {"group_size": 3, "layers": ["body.0"], "label": "x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_convolutions(network, how, symmetric):
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    recipe = LinearRecipe(bits=8, symmetric=symmetric, **how)
    made = quantize_module(network, recipe, torch.float32)
    assert made.layers == (LAYERS if "layers" not in how else ("body.0",))
    assert all(type(made.layer(name)) is DequantizedLayer for name in made.layers)
    assert type(made.layer("body.1")) is nn.Identity
    assert type(made.layer("not_alone")) is nn.BatchNorm2d
    base, logits = network(IMAGES), made.module(IMAGES)
    assert 0 < (logits - base).norm() / base.norm() < 0.02
    shapes = shapes_of(network)
    assert ours.kernel(shapes, recipe, "cpu") == "dequantize"
    size = predicted_bytes(shapes, recipe, "dequantize", 4)
    assert tensor_bytes(made.module) == size.memory  # with the int64 in which a norm counts batches
    assert all(torch.equal(t, kept[name]) for name, t in network.state_dict().items())


@pytest.fixture(scope="module")
def mobilenet():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    names = {number: f"class {number}: caf\u00e9" for number in range(7)}  # the header has them
    config = MobileNetV2Config(num_labels=7, id2label=names, depth_multiplier=0.35)
    return MobileNetV2ForImageClassification(config).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "how",
    [
        {"bits": 8},
        {"bits": 3, "symmetric": True},
        {"bits": 4, "layers": ["*.reduce_1x1.*", "*.expand_1x1.*"], "label": "1x1"},
        INTEGERS,
    ],
    ids=str,
)
def test_a_file_with_convolutions_is_as_large_as_its_shapes_say(mobilenet, how, tmp_path):
    """Strides, padding and groups are in its header, and come back."""
    recipe = LinearRecipe(**{"granularity": "channel", **how})
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = quantize_module(mobilenet, recipe, torch.float32, images.split(2))
    written, model = tmp_path / "file", LockedModel.of("x", shapes_of(mobilenet))
    locked = LockedModel.model_validate_json(model.model_dump_json())
    made.save(written)
    for shapes in (shapes_of(mobilenet), locked.shapes()):
        predicted = predicted_bytes(shapes, recipe, ours.kernel(shapes, recipe, "cpu"), 4)
        assert bytes_in_file(written) == predicted.tensors
        assert written.stat().st_size == predicted.disk
    again = load(written).module(images).logits
    assert torch.equal(again, made.module(images).logits)


class _Padded(nn.Conv2d):
    """As timm's Conv2dSame: by the size of its input."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class _Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.std(), bias)


@pytest.mark.parametrize("kind", [_Padded, _Standardized])
def test_convolutions_that_compute_in_a_way_of_their_own(kind):
    base = nn.Sequential(nn.Conv2d(1, 1, 3), kind(1, 1, 3))
    with pytest.raises(QuantizeError, match=rf"1: {kind.__name__} computes in a way of its own"):
        quantize_module(base, LinearRecipe(bits=8, granularity="channel"), torch.float32)
    recipe = LinearRecipe(bits=8, granularity="channel", layers=["0"], label="first")
    assert quantize_module(base, recipe, torch.float32).layers == ("0",)


def test_convolutions_count_as_layers_in_the_models_order(network):
    shapes = shapes_of(network)
    assert tuple(plans(shapes, LinearRecipe(bits=8, granularity="channel"))) == LAYERS
    recipe = LinearRecipe(bits=8, granularity="channel", first_linears=2)
    assert tuple(plans(shapes, recipe)) == LAYERS[:2]
    reversed_ = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 1, 2), nn.Linear(4, 4))
    assert list(plans(shapes_of(reversed_), LinearRecipe(bits=8, granularity="tensor"))) == [
        "0",
        "1",
        "2",
    ]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integer_convolutions(network, granularity, symmetric):
    recipe = LinearRecipe(**{**INTEGERS, "granularity": granularity, "symmetric": symmetric})
    made = quantize_module(network, recipe, torch.float32, IMAGES.split(4))
    assert all(type(made.layer(name)) is IntegerLayer for name in LAYERS)
    base, logits = network(IMAGES), made.module(IMAGES)
    assert 0 < (logits - base).norm() / base.norm() < 0.05
    size = predicted_bytes(shapes_of(network), recipe, "integer", 4)
    assert tensor_bytes(made.module) == size.memory


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_sums_of_a_convolution_are_exact(network, symmetric):
    """Patch by patch in whole numbers; padding stands for 0, which is the code `zero`."""
    recipe = LinearRecipe(**INTEGERS, symmetric=symmetric)
    made = quantize_module(network, recipe, torch.float32, IMAGES.split(8)).layer("body.0")
    codes = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    zero = int(made.input[1])
    image = nn.functional.pad(codes.long() - zero, (1, 1, 1, 1))
    weight = made.quantized_weight()
    w = (weight.codes.long() - weight.grid.zero.long()).reshape(16, 3, 3, 3)
    total = made.accumulate(codes)
    assert total.dtype == torch.int32
    for n, row, column in ((0, 0, 0), (1, 2, 3), (1, 4, 4)):
        patch = image[n, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        assert torch.equal(total[n, :, row, column].long(), (w * patch).sum((1, 2, 3)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_an_integer_convolution_is_torchs():
    """Inputs of 7 bits: where a CPU has no VNNI, torch adds pairs of products in 16 bits, which
    overflow with 8."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1)).eval().requires_grad_(False)
    recipe = LinearRecipe(**{**INTEGERS, "activation_bits": 7}, symmetric=True)
    x = torch.randn(2, 4, 7, 7)
    layer = quantize_module(base, recipe, torch.float32, [x]).layer("0")
    output_scale, output_zero = layer.output.tolist()
    packed = torch.ops.quantized.conv2d_prepack(
        torch.quantize_per_channel(
            base[0].weight, layer.scale.double(), torch.zeros(8).long(), 0, torch.qint8
        ),
        base[0].bias,
        *([1, 1], [1, 1], [1, 1], 1),
    )
    input_scale, input_zero = layer.input.tolist()
    theirs = torch.ops.quantized.conv2d(
        torch.quantize_per_tensor(x, input_scale, int(input_zero), torch.quint8),
        packed,
        output_scale,
        int(output_zero),
    )
    steps = ((layer(x) - theirs.dequantize()) / output_scale).abs()
    assert steps.max() < 1.01
    assert (steps < 0.01).float().mean() > 0.99


# --- integers in a language model ----------------------------------------------------------


def test_an_integer_layer_is_near_the_one_it_replaces(llama, quantized):
    base = llama(attention_bias=True)
    made = quantized(base, **INTEGERS)
    seen = {}
    for name in made.layers:
        base.get_submodule(name).register_forward_hook(
            lambda layer, given, result, name=name: seen.update({name: (given[0], result)})
        )
    base(torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0)))
    for name, (x, y) in seen.items():
        layer = made.layer(name)
        assert layer.bias is None or layer.bias.dtype == torch.int32
        assert (layer(x) - y).norm() / y.norm() < 0.05
        # what comes out lies on the grid of the outputs, whose 256 points the calibration chose
        scale, zero = layer.output
        codes = layer(x) / scale + zero
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert codes.min() > -0.01
        assert codes.max() < 255.01


def test_more_activation_bits_are_better(llama, quantized):
    base = llama()
    logits = base(TOKENS).logits
    errors = [
        (quantized(base, **{**INTEGERS, "activation_bits": bits}).module(TOKENS).logits - logits)
        .norm()
        .item()
        for bits in (2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_calibrated_on_the_recipes_text(llama, tmp_path):
    """Through the protocol: the text is read by the model's own tokenizer."""
    letters = "abcdefghijklmnop"
    (tmp_path / "text").write_text(letters * 40)

    def tokenizer(texts, **_):
        return {"input_ids": [[ord(letter) - 96 for letter in text] for text in texts]}

    dataset = TEXT.model_copy(
        update={"source": TEXT.source.model_copy(update={"path": tmp_path / "text"})}
    )
    recipe = LinearRecipe(**{**INTEGERS, "calibration": dataset})
    assert list(recipe.calibration_texts()) == [dataset]
    base = llama()
    made = ours.quantize(LoadedModel(base, tokenizer, "", None), recipe, torch.float32)
    name = "model.layers.0.self_attn.q_proj"
    widest = []
    base.get_submodule(name).register_forward_hook(lambda _, x, y: widest.append(x[0].aminmax()))
    base(torch.tensor([list(range(1, 17))]))
    ((low, high),) = widest  # every window is the alphabet's first letters
    layer = made.layer(name)
    assert layer.input[0].item() == pytest.approx(float(high - low) / 255, rel=1e-4)
    with pytest.raises(
        QuantizeError, match=r"recipe linear-w8a8-channel: calibration: .* no tokenizer"
    ):
        ours.quantize(LoadedModel(base, None, "", None), recipe, torch.float32)
