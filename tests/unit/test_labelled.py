"""Labelled items: which are drawn for what, in which order."""

import random

import pytest

from bitgate.catalog import LabelledDataset
from bitgate.sources import SourceError, load_items, shared_item

CLASSES = ["bad", "good"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def labelled(tmp_path):
    """A dataset of these texts, whose label is whether their number is odd."""
    import json

    def write(texts, name):
        rows = [json.dumps({"text": t, "label": n % 2}) for n, t in enumerate(texts)]
        (tmp_path / name).write_text("\n".join(rows))
        return {"kind": "local", "path": str(tmp_path / name)}

    def make(texts, training=None, **fields):
        data = {"name": "some", "of": "texts", "format": "jsonl", "classes": CLASSES, **fields}
        if training is not None:
            data["training"] = write(training, "training.jsonl")
        return LabelledDataset.model_validate({**data, "source": write(texts, "texts.jsonl")})

    return make


TEXTS = [f"text {number}" for number in range(100)]
PARTS = ("evaluated", "training", "validation")
COUNTS = {"items": 20, "items_limit": 30, "train_items": 40, "validation_items": 10}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b", "a"], "`classes`: 'a' is named more than once"),
        (["1", "0"], "'1' would be read as a number, and this one's is 0"),
        (["zero", "2"], "'2' would be read as a number, and this one's is 1"),
        (["a", "01"], "'01' would be read"),
    ],
)
def test_classes_are_told_apart(labelled, classes, message):
    with pytest.raises(ValueError, match=message):
        labelled(TEXTS, classes=classes)
    assert labelled(TEXTS, classes=["0", "1", "two", "-3", "4.5"]).classes[1] == "1"


def test_parts_are_apart_and_as_large_as_asked(labelled):
    dataset = labelled(TEXTS, **COUNTS)
    found = {part: load_items(dataset, part) for part in PARTS}
    assert [len(items) for items in found.values()] == [30, 40, 10]
    seen = [text for items in found.values() for text in items.inputs]
    assert len(set(seen)) == 80
    for items in found.values():
        assert [TEXTS[n] for n in items.numbers] == list(items.inputs)
        assert [n % 2 for n in items.numbers] == list(items.labels)
    assert shared_item(found["training"], found["evaluated"]) is None
    assert shared_item(found["training"], found["training"]) == repr(found["training"].inputs[0])


def test_the_order_is_of_contents_and_not_of_the_file(labelled):
    dataset = labelled(TEXTS, **COUNTS)
    first = load_items(dataset)
    assert load_items(dataset) == first
    assert list(first.numbers) != sorted(first.numbers)
    shuffled = TEXTS[:]
    random.Random(0).shuffle(shuffled)
    assert load_items(labelled(shuffled, **COUNTS)).inputs == first.inputs
    # one more item moves none, but for the last that it pushes out
    more = load_items(labelled([*TEXTS, "another"], **COUNTS))
    assert len(set(more.inputs) ^ set(first.inputs)) in (0, 2)
    other = load_items(labelled(TEXTS, **COUNTS, seed=1))
    assert other.inputs != first.inputs
    assert other.fingerprint != first.fingerprint


def test_more_items_begin_with_the_same(labelled):
    few, many = (load_items(labelled(TEXTS, items=n)) for n in (10, 40))
    assert many.inputs[:10] == few.inputs


def test_equal_items_are_one_and_never_straddle(labelled):
    texts = [f"text {number % 25}" for number in range(100)]  # each four times
    dataset = labelled(texts, items=10, train_items=10, validation_items=5)
    seen = [text for part in PARTS for text in load_items(dataset, part).inputs]
    assert len(seen) == len(set(seen)) == 25
    with pytest.raises(SourceError, match=r"too few: 25 different items, 26 are asked for"):
        load_items(labelled(texts, items=10, train_items=10, validation_items=6), "validation")


def test_what_is_trained_elsewhere_is_never_what_is_evaluated(labelled):
    dataset = labelled(TEXTS, [*TEXTS, "a", "b", "c"], items=100, train_items=2, validation_items=1)
    learned = [load_items(dataset, part).inputs for part in ("training", "validation")]
    assert sorted([*learned[0], *learned[1]]) == ["a", "b", "c"]
    assert len(load_items(dataset)) == 100


def test_labels_are_part_of_the_fingerprint(labelled):
    first = load_items(labelled(TEXTS, items=10))
    turned = load_items(labelled([TEXTS[-1], *TEXTS[:-1]], items=10))
    assert turned.inputs == first.inputs
    assert turned.labels != first.labels
    assert turned.fingerprint != first.fingerprint


def test_without_classes_there_are_no_labels(labelled):
    assert load_items(labelled(TEXTS, classes=[], items=5)).labels is None


@pytest.mark.parametrize(
    ("texts", "fields", "message"),
    [
        ([], {}, "labelled some: holds no items at all"),
        (TEXTS, {"items": 101}, "too few: 100 different items, 101 are; lower `items`"),
        (TEXTS, {"format": "jsonlines"}, "format: nothing is called 'jsonlines'; did you mean"),
        (TEXTS, {"classes": ["only"]}, "row 2: label 1 is none of the `classes` only"),
    ],
)
def test_what_is_refused(labelled, texts, fields, message):
    with pytest.raises(SourceError) as raised:
        load_items(labelled(texts, **{"items": 10, **fields}))
    assert message in str(raised.value)
