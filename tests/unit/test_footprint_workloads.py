"""Workloads of memory and energy in matrix.toml, and a case that this machine cannot measure."""

import pytest

from bitgate.catalog import CatalogError, load
from bitgate.quantize import recipe_types

pytest_plugins = ["pytester"]

MODELS = """
[model.words]
family = "llama"
source = { kind = "local", path = "none" }

[model.feelings]
family = "llama"
task = "text-classification"
source = { kind = "local", path = "none" }
"""
DATASETS = """
[dataset.text]
format = "plain"
source = { kind = "local", path = "none" }

[labelled.tweets]
of = "texts"
format = "tsv"
source = { kind = "local", path = "none" }
classes = ["good", "bad"]

[labelled.pictures]
of = "images"
format = "pixels-csv"
source = { kind = "local", path = "none" }
"""
MATRIX = """
[memory.text-b4]
dataset = "text"
batch = 4

[memory.tweets-b4]
labelled = "tweets"
batch = 4

[energy.tweets-b4]
labelled = "tweets"
batch = 4
items = 8

[accuracy.tweets]
dataset = "tweets"

[accuracy.pictures]
dataset = "pictures"

[[matrix]]
cadence = "commit"
models = ["MODEL"]
recipes = ["hqq-w4g64"]
"""


@pytest.fixture
def catalog(tmp_path):
    def read(model, asked):
        (tmp_path / "models.toml").write_text(MODELS)
        (tmp_path / "datasets.toml").write_text(DATASETS)
        (tmp_path / "matrix.toml").write_text(MATRIX.replace("MODEL", model) + asked)
        return load(tmp_path, recipe_types())

    return read


def test_a_classifier_is_given_items_and_a_language_model_text(catalog):
    asked = 'memory = ["tweets-b4"]\nenergy = ["tweets-b4"]\n'
    energy, memory = catalog("feelings", asked).cases()
    assert memory.key == "memory[feelings-hqq-w4g64-tweets-b4]"
    assert (memory.workload.count, energy.workload.count) == (4, 8)
    assert energy.static_fields()["dataset"] == "tweets"
    assert energy.static_fields()["batch"] == 4
    assert memory.workload.protocol() == {
        "kind": "memory",
        "name": "tweets-b4",
        "batch": 4,
        "length": 32,
        "dataset": "tweets",
        "seed": 0,
    }
    (text,) = catalog("words", 'memory = ["text-b4"]\n').cases()
    assert text.workload.inputs.name == "text"


def test_and_not_the_other_way_round(catalog):
    with pytest.raises(CatalogError, match="it is for models of task causal-lm, and feelings is"):
        catalog("feelings", 'memory = ["text-b4"]\n')
    with pytest.raises(CatalogError, match="task text-classification, and words is of task causal"):
        catalog("words", 'energy = ["tweets-b4"]\n')


def test_texts_are_not_classified_by_a_model_of_images(catalog):
    with pytest.raises(
        CatalogError,
        match="accuracy: it is for models of task image-classification, and feelings is of task "
        "text-classification",
    ):
        catalog("feelings", 'accuracy = ["pictures"]\n')
    (case,) = catalog("feelings", 'accuracy = ["tweets"]\n').cases()
    assert case.workload.asked == ("text-classification",)


UNAVAILABLE = """
import pytest
from bitgate.measure.measurement import UnavailableError

class Hidden:
    least = 1
    def batches(self):
        raise UnavailableError("unavailable: /proc is hidden")
        yield

@pytest.mark.workload("quantize")
def test_quantize(benchmark, gate):
    gate.decide(benchmark, Hidden())
"""


def test_what_cannot_be_measured_is_skipped_and_said(pytester, free_project):
    folder = free_project(pytester.path)
    (folder / "bench" / "test_quantize.py").write_text(UNAVAILABLE)
    (folder / "bench" / "test_perplexity.py").unlink()
    found = pytester.runpytest_subprocess("bench", "-rs")
    found.assert_outcomes(skipped=2)
    found.stdout.fnmatch_lines(["*unavailable: /proc is hidden*"])
