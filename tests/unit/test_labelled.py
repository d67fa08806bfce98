"""Labelled items: which are drawn for what, in which order, and how they are encoded."""

import json
import random

import pytest

from bitgate.catalog import LabelledDataset
from bitgate.sources import EncodedItems, SourceError, load_items, shared_item
from bitgate.sources.tokenizer import made_of

CLASSES = ["bad", "good"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def labelled(tmp_path):
    """A dataset of these texts, whose label is whether their number is odd, or as given."""

    def write(texts, name):
        rows = [
            json.dumps(one if isinstance(one, dict) else {"text": one, "label": n % 2})
            for n, one in enumerate(texts)
        ]
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


#: texts that count as the same
SAME = ["Anger is UGLY.", "anger is ugly!!!", "Anger: is `Ugly`", "ANGER IS UGLY", "Anger-is-ugly"]


def test_variants_of_a_text_never_straddle(labelled):
    variants = [f"{one} {number}" for number in range(40) for one in (*SAME, "other")]
    counts = {"items": 30, "train_items": 30, "validation_items": 20}
    found = {part: load_items(labelled(variants, **counts), part) for part in PARTS}
    kinds = {
        part: {(text.rpartition(" ")[2], "other" in text) for text in items.inputs}
        for part, items in found.items()
    }
    assert [len(kinds[part]) for part in PARTS] == [30, 30, 20]
    assert len(set.union(*kinds.values())) == 80
    for part, other in (("training", "evaluated"), ("evaluated", "training")):
        assert shared_item(found[part], found[other]) is None
    # of each the one that comes first by its own hash: whatever the file, and nothing else moves
    turned = load_items(labelled(variants[::-1], **counts))
    assert turned.inputs == found["evaluated"].inputs
    alone = load_items(labelled([*turned.inputs, *TEXTS], items=130))
    assert [text for text in alone.inputs if text in turned.inputs] == turned.inputs


def test_an_item_is_shared_by_its_letters(labelled):
    lessons = load_items(labelled([SAME[0], "something else"], items=2))
    for one in (*SAME, "\uff21nger is ugly"):  # a wide A
        assert shared_item(lessons, load_items(labelled([one], items=1))) == repr(one)
    for one in ("Anger is not ugly.", ":-)"):
        assert shared_item(lessons, load_items(labelled([one], items=1))) is None


def test_texts_without_letters_are_themselves(labelled):
    texts = [":-)", ":-(", "!!!", "\u2764", "\u263a"]
    assert sorted(load_items(labelled(texts, items=5)).inputs) == sorted(texts)


def test_variants_of_what_is_evaluated_are_not_trained_on(labelled):
    training = [*(text.upper() + "!" for text in TEXTS), "a", "b"]
    dataset = labelled(TEXTS, training, items=100, train_items=2)
    assert sorted(load_items(dataset, "training").inputs) == ["a", "b"]
    with pytest.raises(SourceError, match="too few: 2 different items"):
        load_items(labelled(TEXTS, training, items=100, train_items=3), "training")


def test_the_label_is_the_drawn_items_whatever_the_order_of_the_file(labelled):
    rows = [
        {"text": text, "label": label}
        for number in range(20)
        for text, label in ((f"equal {number}", 0), (f"equal {number}", 1), (f"Equal {number}", 1))
    ]
    first = load_items(labelled(rows, items=20))
    turned = load_items(labelled(rows[::-1], items=20))
    assert (turned.inputs, turned.labels) == (first.inputs, first.labels)
    assert turned.fingerprint == first.fingerprint
    for text, label in zip(first.inputs, first.labels, strict=True):
        assert {"text": text, "label": label} in rows
    assert {label for text, label in zip(first.inputs, first.labels, strict=True)} == {0, 1}


def test_half_a_character_is_refused(labelled):
    """JSON can spell it, but nothing can be written of it."""
    with pytest.raises(SourceError, match=r"labelled some: .*half.* a character"):
        load_items(labelled(["a", "b", "so \ud83d sad", "\ud83d\ude00"], items=2))
    assert len(load_items(labelled(["a", "\U0001f600"], items=2))) == 2


def test_what_a_model_sees_follows_from_its_tokenizer(labelled, by_word):
    items = load_items(labelled(["w1 w2 w3", "w4"], items=2))

    def seen(tokenizer, longest=64):
        return EncodedItems(items, tokenizer, longest).fingerprint

    tokenizer = by_word()
    first = seen(tokenizer)
    EncodedItems(items, tokenizer, 2).inputs(0, 2)  # padded and cut, of which it keeps a note
    assert seen(tokenizer) == first
    assert seen(by_word()) == first, "made alike"
    cut_in_front = by_word()
    cut_in_front.truncation_side = "left"
    others = [
        seen(by_word(words=100)),
        seen(by_word(pad_token="<eos>")),
        seen(cut_in_front),
        seen(tokenizer, 32),
        seen(None),
    ]
    assert len({first, *others}) == 6


def test_a_tokenizer_that_says_it_after_it_has_cut_is_the_same_one(labelled, by_word):
    """What a call sets is no part of it, even if it was set before anybody asked."""
    used = by_word()
    EncodedItems(load_items(labelled(["w1 w2 w3", "w4"], items=2)), used, 2).inputs(0, 2)
    assert made_of(used) == made_of(by_word())


def test_a_slow_tokenizer_is_its_vocabulary():
    class Slow:
        truncation_side = "right"

        def __init__(self, **vocabulary):
            self.vocabulary = vocabulary

        def get_vocab(self):
            return self.vocabulary

    assert made_of(Slow(a=1, b=2)) == made_of(Slow(b=2, a=1))
    assert made_of(Slow(a=1, b=2)) != made_of(Slow(a=2, b=1))


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
