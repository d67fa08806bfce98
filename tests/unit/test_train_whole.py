"""A small model of images, trained from its configuration: it learns, and twice the same."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from bitgate.catalog import Execution, LabelledDataset, Model
from bitgate.kernels.served import tensor_bytes
from bitgate.measure.quantization import bytes_on_disk
from bitgate.quantize import method, shapes_of
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.shapes import head_of
from bitgate.sources import SourceError, fetch_config, fingerprint, load_items, load_model
from bitgate.sources.architecture import skeleton
from bitgate.sources.train_whole import _moved

CONFIG = {
    "model_type": "deit",
    "image_size": 4,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
CLASSES = ("left", "right", "low")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path):
    """Noise that is brighter on the left, on the right or below."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    images = random.normal(0, 0.3, (200, 4, 4))
    images[labels == 0, :, :2] += 1
    images[labels == 1, :, 2:] += 1
    images[labels == 2, 2:] += 1
    rows = np.concatenate([images.reshape(200, 16), labels[:, None]], 1)
    np.savetxt(tmp_path / "x.csv", rows, delimiter=",")
    return LabelledDataset.model_validate(
        {
            "name": "bright",
            "of": "images",
            "format": "pixels-csv",
            "source": {"kind": "local", "path": str(tmp_path / "x.csv")},
            "classes": CLASSES,
            "items": 60,
            "train_items": 100,
            "validation_items": 40,
            "options": {"shape": [1, 4, 4], "largest": 1},
        }
    )


@pytest.fixture
def model(dataset):
    def make(config=CONFIG, name="bright", **source):
        settings = {"epochs": 12, "batch": 10, "learning_rate": 3e-3, **source}
        return Model.model_validate(
            {
                "name": name,
                "family": "deit",
                "task": "image-classification",
                "source": {"kind": "trained", "dataset": dataset, **settings},
                "config": config,
            }
        )

    return make


def test_it_learns_and_says_how(model, dataset):
    loaded = load_model(model())
    told = json.loads((loaded.directory / "training.json").read_text())
    epochs = told["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 13))
    assert told["seconds"] > 0
    assert epochs[-1]["training_loss"] < epochs[0]["training_loss"]
    assert epochs[-1]["validation_accuracy"] > 0.8
    items = load_items(dataset)
    with torch.no_grad():
        logits = loaded.module(pixel_values=items.inputs[0:60]).logits
    accuracy = (logits.argmax(-1) == torch.tensor(items.labels)).float().mean()
    assert accuracy > 0.8
    held = load_items(dataset, "validation")
    with torch.no_grad():
        logits = loaded.module(pixel_values=held.inputs[0:40]).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(held.labels))
    assert epochs[-1]["validation_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert loaded.module.config.id2label == dict(enumerate(CLASSES))


def test_it_is_the_same_twice_and_another_with_another_seed(model, tmp_path, monkeypatch):
    first = load_model(model()).module.state_dict()
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "elsewhere"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = load_model(model()).module.state_dict()
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers changed
    torch.set_num_threads(threads)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = load_model(model(seed=1)).module.state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_it_is_the_same_one_beside_an_accelerator(model, monkeypatch):
    here = fingerprint(model(), torch.float32)
    monkeypatch.setattr("bitgate.sources.train_head.pick_device", lambda _: "cuda")
    assert fingerprint(model(), torch.float32) == here
    assert fingerprint(model(seed=1), torch.float32) != here


def test_its_shapes_are_known_beforehand_and_its_head_is_one(model):
    shapes = shapes_of(skeleton(fetch_config(model()), "image-classification"))
    loaded = load_model(model())
    assert shapes == shapes_of(loaded.module)
    assert head_of(loaded.module) == "classifier" == shapes.head


def test_it_can_be_quantized_saved_and_read_again(model, tmp_path):
    loaded = load_model(model())
    recipe = HqqRecipe(bits=8, group_size=32)
    hqq = method("hqq")
    kernel = hqq.kernel(shapes_of(loaded.module), recipe, "cpu")
    execution = Execution("cpu", "float32", 1, kernel)
    made = hqq.quantize(loaded, recipe, torch.float32)
    made.save(tmp_path / "q.safetensors")
    served, again = (
        quantized.serve(execution)
        for quantized in (made, hqq.load(tmp_path / "q.safetensors", "cpu"))
    )
    images = {"pixel_values": torch.randn(5, 1, 4, 4)}
    assert torch.equal(served.classify(images), again.classify(images))
    size = hqq.predicted_bytes(shapes_of(loaded.module), recipe, kernel, 4)
    assert tensor_bytes(served.module) == size.memory
    assert bytes_on_disk(tmp_path / "q.safetensors") == size.disk


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 101}, "source.batch: 101, of which 100 items of training make none"),
        ({"learning_rate": 1e30}, "source.learning_rate: the loss is nan in epoch 1; lower it"),
    ],
)
def test_what_cannot_be_trained_is_said(model, changes, message):
    with pytest.raises(SourceError, match=f"model bright: {message}"):
        load_model(model(**changes))


def test_texts_need_a_base(model, dataset, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    source = {"kind": "local", "path": str(tmp_path / "x.jsonl")}
    counts = {"items": 1, "train_items": 1, "validation_items": 0}
    changes = {"of": "texts", "format": "jsonl", "source": source, "options": {}, **counts}
    texts = LabelledDataset.model_validate({**dict(dataset), **changes})
    with pytest.raises(SourceError, match=r"source.dataset: whole models are trained on images"):
        load_model(model(dataset=texts))


def test_nothing_is_learned_without_labels_or_items(model, dataset, tmp_path):
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(np.random.default_rng(0).random((9, 4, 4))))
    source = {"kind": "local", "path": str(tmp_path / "x.pickle")}
    counts = {"items": 3, "train_items": 4, "validation_items": 2}
    changes = {"format": "pickled-arrays", "source": source, "classes": (), **counts}
    unlabelled = LabelledDataset.model_validate({**dict(dataset), **changes})
    with pytest.raises(SourceError, match=r"source\.dataset: bright has no labels to learn from"):
        load_model(model(dataset=unlabelled, batch=2))
    none = dataset.model_copy(update={"train_items": 0})
    with pytest.raises(SourceError, match="labelled bright: train_items: it has none to train"):
        load_model(model(dataset=none))


def test_images_that_the_model_does_not_take_are_said(model):
    for changes, wanted in (
        ({"image_size": 8}, "image_size 8"),
        ({"num_channels": 3}, "channels 3"),
    ):
        with pytest.raises(
            SourceError,
            match=rf"model bright: options\.shape: .* takes no images of 1 x 4 x 4 .*{wanted}",
        ):
            load_model(model(config={**CONFIG, **changes}))


def test_larger_images_are_moved_by_a_pixel_at_most():
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 20, 20) - 1
    image[..., 10, 10] = 1
    places = set()
    for _ in range(200):
        moved = _moved(image)
        assert moved.shape == image.shape
        assert moved.sum() == image.sum()
        _, _, row, column = (moved == 1).nonzero()[0].tolist()
        places.add((row, column))
    assert places == {(row, column) for row in (9, 10, 11) for column in (9, 10, 11)}
    assert _moved(image[..., :8, :8]) is not None
    assert torch.equal(_moved(image[..., 5:13, 5:13]), image[..., 5:13, 5:13])
