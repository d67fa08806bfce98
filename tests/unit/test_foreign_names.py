"""Weights of other libraries: torchvision's under other names, timm's in transformers' wrapper."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from bitgate.catalog import Execution, Model
from bitgate.kernels.served import probe, tensor_bytes
from bitgate.quantize import method, shapes_of
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.linear import LinearRecipe
from bitgate.quantize.shapes import head_of
from bitgate.sources import SourceError, architecture, load_model
from bitgate.sources.architecture import read_config, skeleton

MOBILENET = {
    "model_type": "mobilenet_v2",
    "num_labels": 1000,
    "tf_padding": False,
    "layer_norm_eps": 1e-5,
}
TIMM = {"model_type": "timm_wrapper", "num_labels": 7}


@pytest.fixture
def saved(tmp_path):
    """A model of the catalog whose weights are this state dict."""

    def make(state, config, **changes):
        path = tmp_path / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        return Model.model_validate(
            {
                "name": "foreign",
                "family": "any",
                "task": "image-classification",
                "format": "state-dict",
                "source": {"kind": "local", "path": str(path)},
                "config": config,
                **changes,
            }
        )

    return make


@pytest.fixture(scope="module")
def theirs():
    """torchvision's MobileNetV2, with norms that have seen something."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    module = torchvision.models.mobilenet_v2()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.1)
    return module.eval()


def ordered(state, tmp_path):
    """safetensors sorts names, torch does not."""
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return {"kind": "local", "path": str(path)}


def test_torchvisions_mobilenet_gives_the_same_logits_in_transformers(theirs, saved, tmp_path):
    source = ordered(theirs.state_dict(), tmp_path)
    model = saved({}, MOBILENET, keys="order", source=source)
    loaded = load_model(model)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        ours, expected = loaded.module(pixel_values=images).logits, theirs(images)
    assert expected.abs().max() > 0.1
    assert torch.allclose(ours, expected, atol=1e-5, rtol=1e-5)
    counters = [b for n, b in loaded.module.named_buffers() if n.endswith("num_batches_tracked")]
    assert {buffer.dtype for buffer in counters} == {torch.int64}


def test_an_order_that_does_not_fit_is_refused(theirs, saved, tmp_path):
    state = dict(theirs.state_dict())
    first, second = (list(state)[number] for number in (0, 6))
    swapped = {name: state[{first: second, second: first}.get(name, name)] for name in state}
    model = saved({}, MOBILENET, keys="order", source=ordered(swapped, tmp_path))
    with pytest.raises(SourceError, match=rf"keys: in the order of both, {first} of weights.pth"):
        load_model(model)
    del state[first]
    model = saved({}, MOBILENET, keys="order", source=ordered(state, tmp_path))
    with pytest.raises(SourceError, match=r"keys: weights.pth has 313 tensors and .* 314"):
        load_model(model)
    with pytest.raises(SourceError, match=r"262 .*missing"):  # by name, nothing is found
        load_model(saved({}, MOBILENET, source=ordered(theirs.state_dict(), tmp_path)))


def test_keys_are_for_state_dicts(saved):
    with pytest.raises(ValidationError, match="`keys` goes with `format` state-dict only"):
        saved({}, None, keys="order", format="gguf")


def test_quantized_convolutions_are_saved_bit_by_bit(theirs, saved, tmp_path):
    source = ordered(theirs.state_dict(), tmp_path)
    loaded = load_model(saved({}, MOBILENET, keys="order", source=source))
    recipe = LinearRecipe(bits=4, granularity="channel")
    linear = method("linear")
    shapes = shapes_of(loaded.module)
    kernel = linear.kernel(shapes, recipe, "cpu")
    execution = Execution("cpu", "float32", 1, kernel)
    made = linear.quantize(loaded, recipe, torch.float32)
    served = made.serve(execution)
    assert served.packed_layers == served.expected_layers == 52  # all but the head
    made.save(tmp_path / "q.safetensors")
    again = linear.load(tmp_path / "q.safetensors", "cpu").serve(execution)
    assert torch.equal(probe(served), probe(again))
    # counters of norms are int64 in a model of any dtype
    assert tensor_bytes(served.module) == linear.predicted_bytes(shapes, recipe, kernel, 4).memory
    assert shapes.fixed == 52 * 8


# --- timm ----------------------------------------------------------------------------------


def test_a_model_of_timm_needs_toml_alone(saved, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    arguments = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}
    original = timm.create_model("deit3_small_patch16_224", num_classes=7, **arguments).eval()
    config = {**TIMM, "architecture": "deit3_small_patch16_224", "model_args": arguments}
    model = saved(original.state_dict(), config)
    loaded = load_model(model)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(pixel_values=images).logits, original(images))
    assert head_of(loaded.module) == "timm_model.head"
    shapes = shapes_of(loaded.module)
    assert shapes == shapes_of(skeleton(read_config(model, None), "image-classification"))
    hqq, recipe = method("hqq"), HqqRecipe(bits=4, group_size=32)
    kernel = hqq.kernel(shapes, recipe, "cpu")
    execution = Execution("cpu", "float32", 1, kernel)
    made = hqq.quantize(loaded, recipe, torch.float32)
    made.save(tmp_path / "q.safetensors")
    served = made.serve(execution)
    again = hqq.load(tmp_path / "q.safetensors", "cpu").serve(execution)
    logits = served.classify({"pixel_values": images})
    assert logits.shape == (3, 7)
    assert torch.equal(logits, again.classify({"pixel_values": images}))
    assert torch.equal(probe(served), probe(again))
    assert served.packed_layers == 8  # of two blocks; the head stays
    assert tensor_bytes(served.module) == hqq.predicted_bytes(shapes, recipe, kernel, 4).memory


@pytest.mark.parametrize(("bits", "mib"), [(8, 26.852), (4, 16.727), (3, 14.706), (2, 11.665)])
def test_the_published_sizes_of_deit_s_follow_from_its_shapes(saved, bits, mib):
    """Theirs leave out what is in no layer: positions of 196 patches, and the token of classes."""
    pytest.importorskip("timm")
    config = {**TIMM, "num_labels": 100, "architecture": "deit3_small_patch16_224"}
    shapes = shapes_of(skeleton(read_config(saved({}, config), None), "image-classification"))
    recipe = HqqRecipe(bits=bits, group_size=32, kernel="dequantize")
    size = method("hqq").predicted_bytes(shapes, recipe, "dequantize", 4)
    assert (size.tensors - 4 * (196 + 1) * 384) / 2**20 == pytest.approx(mib, abs=5e-4)


def test_without_timm_the_error_names_the_extra(saved, monkeypatch):
    monkeypatch.setattr(architecture, "find_spec", lambda name: None)
    model = saved({}, {**TIMM, "architecture": "deit3_small_patch16_224"})
    with pytest.raises(SourceError, match=r"model foreign: .* pip install 'bitgate\[images\]'"):
        load_model(model)


def test_an_architecture_that_timm_does_not_have_is_said(saved):
    pytest.importorskip("timm")
    with pytest.raises(SourceError, match=r"config: .*'deit9' is not supported"):
        load_model(saved({}, {**TIMM, "architecture": "deit9"}))


def test_a_directory_as_timm_puts_on_a_hub_is_read_as_it_is(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    arguments = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}
    original = timm.create_model("deit3_small_patch16_224", num_classes=7, **arguments).eval()
    state = {name: tensor.contiguous() for name, tensor in original.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config = {
        "architecture": "deit3_small_patch16_224",
        "num_classes": 7,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 7},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = Model.model_validate(
        {
            "name": "foreign",
            "family": "deit",
            "task": "image-classification",
            "source": {"kind": "local", "path": str(tmp_path)},
        }
    )
    loaded = load_model(model)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(pixel_values=images).logits, original(images))
    assert head_of(loaded.module) == "timm_model.head"
