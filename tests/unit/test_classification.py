"""Classification beside the base: observations, metrics, times, and the base's cache."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from bitgate.catalog import AccuracyWorkload
from bitgate.gates.decide import decide
from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.measure import base_classes
from bitgate.measure.base import BaseModel
from bitgate.measure.base_classes import AREA, BLOCK
from bitgate.measure.classification import paired_predictions
from bitgate.sources import EncodedItems


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    return tmp_path / AREA


@pytest.fixture
def workload():
    def make(items=40, limit=None, **fields):
        dataset = {
            "name": "some",
            "of": "texts",
            "source": {"kind": "local", "path": "unused"},
            "format": "jsonl",
            "classes": ["negative", "neutral", "positive"],
            "items": items,
            "items_limit": limit,
        }
        data = {"kind": "accuracy", "name": "some", "dataset": dataset, **fields}
        return AccuracyWorkload.model_validate(data)

    return make


@pytest.fixture
def base(classifier, execution):
    return BaseModel(classifier(), execution("torch"), "made here")


@pytest.fixture
def quantized(classifier, hqq, execution):
    return hqq(classifier(), bits=3).serve(execution())


def test_what_is_measured(quantized, base, labelled_texts, workload, items_of, metrics_of):
    texts = labelled_texts(50)
    measurement = paired_predictions(quantized, base, texts, workload(batch=8))
    assert (measurement.least, measurement.most) == (40, 50)
    items = items_of(measurement)
    own, other = (m.classify(texts.inputs(0, 50)).argmax(-1).tolist() for m in (quantized, base))
    assert items["predicted"].tolist() == own
    assert items["base_predicted"].tolist() == other
    assert items["label"].tolist() == list(texts.items.labels)
    found = metrics_of(measurement, items)
    assert found["accuracy"].value == np.mean(np.equal(own, texts.items.labels))
    assert found["base_accuracy"].value == np.mean(np.equal(other, texts.items.labels))
    assert found["top1_agreement"].value == np.mean(np.equal(own, other)) < 1
    assert found["accuracy_difference"].value == pytest.approx(
        found["accuracy"].value - found["base_accuracy"].value
    )
    assert found["macro_f1"].value == pytest.approx(
        f1_score(texts.items.labels, own, average="macro")
    )
    assert 0 < found["mcnemar_p"].value <= 1
    assert found["packed_layers"].value == found["packed_layers"].expected == 14
    assert found["items_per_second"].interval.n == 1
    assert "evaluation_speedup" not in found


def test_a_workload_can_ask_for_just_so_many_items(
    quantized, base, labelled_texts, workload, items_of
):
    few = paired_predictions(quantized, base, labelled_texts(50), workload(items=30, limit=50))
    assert (few.least, few.most) == (30, 50)
    asked = AccuracyWorkload.model_validate({**dict(workload(items=30, limit=50)), "items": 40})
    fixed = paired_predictions(quantized, base, labelled_texts(50), asked)
    assert (fixed.least, fixed.most) == (40, 40)
    assert len(items_of(fixed)["same"]) == 40
    told = asked.protocol()
    assert (told["items"], told["items_limit"]) == (40, 40)
    assert few.workload.protocol()["items"] == 30
    with pytest.raises(ValueError, match="must be at most what dataset some evaluates, 30"):
        AccuracyWorkload.model_validate({**dict(workload(items=30)), "items": 40})


def test_without_labels_only_agreement_is_measured(
    quantized, base, labelled_texts, workload, items_of, metrics_of
):
    measurement = paired_predictions(
        quantized, base, labelled_texts(16, labels=False), workload(batch=2)
    )
    found = metrics_of(measurement, items_of(measurement))
    assert set(found) == {"top1_agreement", "items_per_second", "packed_layers"}


class Slow:
    """A model that takes its time, and says in which order it was asked."""

    def __init__(self, name, model, asked, seconds=0.0):
        self.name, self.model, self.asked, self.seconds = name, model, asked, seconds
        self.packed_layers = self.expected_layers = 0
        self.execution = model.execution
        self.layer_classes = ""

    def classify(self, inputs):
        from time import sleep

        self.asked.append((self.name, len(inputs["input_ids"])))
        sleep(self.seconds)
        return self.model.classify(inputs)


def test_timed_the_base_takes_turns(base, labelled_texts, workload, items_of, metrics_of, cache):
    asked = []
    own, other = Slow("own", base, asked, 0.02), Slow("base", base, asked, 0.2)
    timed = workload(items=24, limit=26, batch=4, timed=True)
    measurement = paired_predictions(own, other, labelled_texts(26), timed)
    assert (measurement.least, measurement.most) == (24, 26)
    items = items_of(measurement)
    assert [name for name, _ in asked[:6]] == ["own", "base", "base", "own", "own", "base"]
    assert asked[-1][1] == 2  # the last batch is what is left
    assert not cache.exists()  # its answers are those just given
    found = metrics_of(measurement, items)
    assert found["top1_agreement"].value == 1
    assert 2 < found["evaluation_speedup"].value < 10
    assert 20 < found["items_per_second"].value < 4 / 0.02


def test_fewer_batches_than_a_median_needs_have_no_times(
    quantized, base, labelled_texts, workload, items_of, metrics_of
):
    measurement = paired_predictions(quantized, base, labelled_texts(40), workload(batch=8))
    found = metrics_of(measurement, items_of(measurement))
    assert not {"items_per_second", "evaluation_speedup"} & set(found)
    assert "accuracy" in found


def test_as_many_are_classified_as_the_protocol_says(workload):
    """A median of six batches, or more, has an interval: too few are refused, not made more."""
    with pytest.raises(
        ValueError,
        match="`items` of dataset some: 40 are fewer than the 6 batches of 16 that `timed` takes; "
        "give at least 96, or lower `batch`",
    ):
        workload(items=40, limit=200, batch=16, timed=True)
    many = {**dict(workload(items=200)), "batch": 16, "timed": True}
    with pytest.raises(ValueError, match="`items`: 40 are fewer than the 6 batches of 16"):
        AccuracyWorkload.model_validate({**many, "items": 40})
    assert AccuracyWorkload.model_validate({**many, "items": 96}).protocol()["items"] == 96


@pytest.mark.parametrize("items", [1, 2])
def test_fewer_items_than_an_interval_takes_are_refused(workload, items):
    with pytest.raises(ValueError, match=f"`items` of dataset some: {items} .* at least 3"):
        workload(items=items)
    with pytest.raises(ValueError, match=f"`items`: {items} have no interval; give at least 3"):
        AccuracyWorkload.model_validate({**dict(workload()), "items": items})


def test_three_items_have_intervals(
    quantized, base, labelled_texts, workload, items_of, metrics_of
):
    measurement = paired_predictions(quantized, base, labelled_texts(3), workload(items=3))
    assert "macro_f1" in metrics_of(measurement, items_of(measurement))


@pytest.mark.parametrize("broken", ["quantized", "base"])
def test_not_a_number_is_never_right(
    broken, classifier, served, base, labelled_texts, workload, items_of, metrics_of, execution
):
    module = classifier()
    module.score.weight[:] = math.nan
    models = {"quantized": served(classifier()), "base": base}
    models[broken] = BaseModel(module, execution("torch"), "broken")
    texts = labelled_texts(40)
    measurement = paired_predictions(models["quantized"], models["base"], texts, workload())
    found = metrics_of(measurement, items_of(measurement))
    for name in ("top1_agreement", "accuracy_difference", "macro_f1", "macro_f1_difference"):
        assert not found[name].finite, name
    assert found["accuracy"].finite == (broken == "base")
    assert found["base_over_majority"].finite == (broken == "quantized")


def test_only_what_is_evaluated_costs_the_base(base, quantized, labelled_texts, workload, cache):
    """A gate that is decided at once stops the pulling; the other items are never classified."""
    texts = labelled_texts(3 * BLOCK)
    measurement = paired_predictions(quantized, base, texts, workload(items=32, limit=3 * BLOCK))
    rule = Rule("top1_agreement", "loose", "thresholds.toml", Bound(min=0.0))
    decision = decide(measurement, {"top1_agreement": rule})
    assert decision.stopped == "decided"
    assert len(decision.items["same"]) == 32
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_the_bases_answers_are_kept_by_weights_and_items(
    classifier, execution, labelled_texts, by_word, cache, monkeypatch
):
    asked = []
    original = BaseModel.classify
    monkeypatch.setattr(
        BaseModel, "classify", lambda self, inputs: asked.append(1) or original(self, inputs)
    )
    texts = labelled_texts(BLOCK + 40)
    base = BaseModel(classifier(), execution("torch"), "one")
    live = torch.cat([original(base, texts.inputs(n, n + 1)) for n in range(len(texts))])

    torch.testing.assert_close(base.classes(texts, 0, len(texts)), live)
    assert len(asked) == BLOCK // 32 + 2
    asked.clear()
    for start, stop in ((0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, BLOCK + 40), (3, BLOCK + 40)):
        torch.testing.assert_close(base.classes(texts, start, stop), live[start:stop])
    assert BaseModel(classifier(), execution("torch"), "one").classes(texts, 0, 2).shape == (2, 3)
    assert not asked

    other = BaseModel(classifier(seed=1), execution("torch"), "another")
    assert not torch.allclose(other.classes(texts, 0, 40), live[:40])
    assert asked
    asked.clear()
    base.classes(labelled_texts(40, seed=1), 0, 40)
    assert len(asked) == 2
    asked.clear()
    base.classes(labelled_texts(40, seed=1, longest=5), 0, 40)  # what the model sees is cut
    assert len(asked) == 2
    asked.clear()
    again, other = labelled_texts(40, seed=1), by_word(words=100)
    base.classes(EncodedItems(again.items, by_word(), again.longest), 0, 40)
    assert not asked, "made alike"
    base.classes(EncodedItems(again.items, other, again.longest), 0, 40)
    assert len(asked) == 2
    assert base_classes.FILE in {path.name for path in cache.glob("*/*")}
