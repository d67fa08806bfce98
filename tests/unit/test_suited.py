"""A classifier and a dataset that do not go together: said where both first meet."""

from __future__ import annotations

import json

import pytest
import torch

from bitgate import quantize
from bitgate.catalog import AccuracyWorkload, Case, Cell, LabelledDataset, LocalSource, Model
from bitgate.plugin.shelf import Shelf
from bitgate.sources import LabelledItems, SourceError, refuse_unsuited

TEXTS = {"of": "texts", "format": "jsonl", "classes": ["bad", "so so", "good"]}
IMAGES = {"of": "images", "format": "pixels-csv", "options": {"shape": [1, 8, 8]}}


def labelled(**fields):
    source = {"kind": "local", "path": "unused"}
    return LabelledDataset.model_validate({"name": "some", "source": source, **fields})


def refuse(module, dataset, images=None):
    inputs = ["a text"] if images is None else images
    items = LabelledItems(inputs, None, (0,), dataset.classes, "")
    refuse_unsuited("model tiny", module, dataset, items)


def named(module, *names):
    module.config.id2label = dict(enumerate(names))
    return module


# --- classes -------------------------------------------------------------------------------


def test_as_many_classes_as_the_model_tells_apart(classifier):
    refuse(classifier(), labelled(**TEXTS))  # which calls them LABEL_0 and so on
    refuse(classifier(), labelled(**{**TEXTS, "classes": []}))  # nobody says what is right
    with pytest.raises(
        SourceError,
        match=r"labelled some: classes: model tiny tells 5 apart, and 3 are named; .*: LABEL_0,",
    ):
        refuse(classifier(num_labels=5), labelled(**TEXTS))


@pytest.mark.parametrize("names", [("good", "so so", "bad"), ("Good", "So so", "BAD")])
def test_classes_in_the_models_own_order(classifier, names):
    message = f"classes: model tiny has the same ones in another order; .*: {', '.join(names)}"
    with pytest.raises(SourceError, match=message):
        refuse(named(classifier(), *names), labelled(**TEXTS))
    refuse(named(classifier(), *reversed(names)), labelled(**TEXTS))
    refuse(named(classifier(), "-", "0", "+"), labelled(**TEXTS))  # other names may mean the same


# --- images --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deit():
    from transformers import DeiTConfig, DeiTForImageClassification

    config = DeiTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return DeiTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def mobilenet():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=2)).eval()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (1, 28, 28),
            {"shape": [1, 28, 28]},
            "options.shape: model tiny takes no images of 1 x 28",
        ),
        (
            (3, 8, 8),
            {"size": [8, 8]},
            "options.size: .* of 3 x 8 x 8 .* num_channels 1, image_size 8",
        ),
    ],
)
def test_images_that_a_model_does_not_take(deit, shape, options, message):
    refuse(deit, labelled(**IMAGES), torch.zeros(2, 1, 8, 8))
    with pytest.raises(SourceError, match=f"labelled some: {message}"):
        refuse(deit, labelled(**{**IMAGES, "options": options}), torch.zeros(2, *shape))


def test_convolutions_take_any_size_whatever_their_configuration_says(mobilenet):
    assert mobilenet.config.image_size == 224
    refuse(mobilenet, labelled(**IMAGES), torch.zeros(2, 3, 64, 64))
    with pytest.raises(SourceError, match="takes no images of 1 x 64 x 64"):
        refuse(mobilenet, labelled(**IMAGES), torch.zeros(2, 1, 64, 64))


# --- texts ---------------------------------------------------------------------------------


def test_no_more_tokens_than_positions(classifier):
    refuse(classifier(), labelled(**TEXTS, longest=128))
    with pytest.raises(
        SourceError, match=r"longest: 129 tokens .* more than the 128 positions of model tiny"
    ):
        refuse(classifier(), labelled(**TEXTS, longest=129))


@pytest.mark.parametrize(
    ("kind", "fields", "positions"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 20}, 20),
        (
            "roberta",  # which counts from behind its padding, at 1
            {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 20,
            },
            18,
        ),
    ],
)
def test_positions_are_those_that_can_be_read(kind, fields, positions):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    fields |= {"vocab_size": 30, "num_labels": 3, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **fields)
    module = AutoModelForSequenceClassification.from_config(config).eval()
    refuse(module, labelled(**TEXTS, longest=positions))
    module(input_ids=torch.full((1, positions), 5))
    with pytest.raises(SourceError, match=f"more than the {positions} positions"):
        refuse(module, labelled(**TEXTS, longest=positions + 1))
    with pytest.raises((IndexError, RuntimeError)):
        module(input_ids=torch.full((1, positions + 1), 5))


# --- where both meet -----------------------------------------------------------------------


def test_the_shelf_asks(classifier, by_word, tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    named(classifier(), *TEXTS["classes"]).save_pretrained(tmp_path / "tiny")
    by_word().save_pretrained(tmp_path / "tiny")
    rows = [json.dumps({"text": f"w{n}", "label": n % 3}) for n in range(9)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    model = Model(
        name="tiny",
        family="llama",
        task="text-classification",
        source=LocalSource(kind="local", path=tmp_path / "tiny"),
    )
    recipe = quantize.method("hqq").RECIPE(method="hqq", bits=4, group_size=64)

    def case(**changes):
        source = {"kind": "local", "path": str(tmp_path / "texts.jsonl")}
        dataset = labelled(**{**TEXTS, "source": source, "items": 9, **changes})
        workload = AccuracyWorkload(kind="accuracy", name="some", dataset=dataset)
        return Case(Cell(model, recipe), workload, "commit")

    class Wanted:
        device, threads = "cpu", 1

    shelf = Shelf(Wanted())
    assert len(shelf.items(case(name="good"))) == 9
    for name, changes, message in (
        ("turned", {"classes": TEXTS["classes"][::-1]}, "classes: model tiny has the same ones"),
        ("more", {"classes": [*TEXTS["classes"], "best"]}, "classes: model tiny tells 3 apart"),
        ("long", {"longest": 200}, "longest: 200 tokens"),
    ):
        with pytest.raises(SourceError, match=f"labelled {name}: {message}"):
            shelf.items(case(name=name, **changes))
    shelf.clear()
