"""What is in memory, and what is on disk instead; and what launches cost."""

import sys
from dataclasses import replace

import pytest

from bitgate import quantize
from bitgate.catalog import (
    Case,
    Cell,
    Dataset,
    LabelledDataset,
    LocalSource,
    MemoryWorkload,
    Model,
    PhaseWorkload,
    Recipe,
    TextWorkload,
    TrainedSource,
)
from bitgate.plugin.budget import Budget
from bitgate.plugin.shelf import Shelf, _keep_unseen
from bitgate.sources import DoesNotFit, SourceError, load_items


@pytest.fixture(scope="module")
def model(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    llama().save_pretrained(folder)
    return Model(name="tiny", family="llama", source=LocalSource(kind="local", path=folder))


@pytest.fixture
def case(model):
    def make(bits=4, output=8):
        recipe = quantize.method("hqq").RECIPE(method="hqq", bits=bits, group_size=64)
        workload = PhaseWorkload(kind="decode", name="b1", prompt=4, output=output, threads=1)
        return Case(Cell(model, recipe), workload, "commit")

    return make


@pytest.fixture
def loads(monkeypatch):
    """How often a model was loaded."""
    seen, module = [], sys.modules[Shelf.__module__]
    load_model = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *a, **k: seen.append(a) or load_model(*a, **k))
    return seen


@pytest.fixture
def shelf():
    class Wanted:
        device, threads = "cpu", 1

    shelf = Shelf(Wanted())
    yield shelf
    shelf.clear()


def test_a_saved_cell_takes_the_place_of_models_in_memory(shelf, case, loads):
    import torch

    tokens = torch.arange(8)[None]
    execution = shelf.execution(case())
    before = shelf.quantized(case()).logits(tokens)
    path = shelf.saved(case())
    shelf.release()
    assert path.is_file()
    assert shelf.execution(case()) == execution
    assert shelf.saved(case()) == path
    assert torch.equal(shelf.quantized(case()).logits(tokens), before)
    assert len(loads) == 1, "shapes are known, and the cell is loaded from its file"
    shelf.base(case())
    assert len(loads) == 2


def test_one_cell_is_on_disk_at_a_time(shelf, case):
    shelf.execution(case())
    first = shelf.saved(case())
    shelf.execution(case(8))
    second = shelf.saved(case(8))
    assert second.is_file()
    assert not first.parent.exists()
    assert "dequantize" in shelf.quantized(case(8)).execution.kernel
    shelf.clear()
    assert not second.parent.exists()


def test_what_cannot_be_saved_leaves_nothing(shelf, case, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shelf.execution(case())
    quantized = shelf._quantized(case().cell)
    monkeypatch.setattr(type(quantized), "save", lambda self, path: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            shelf.saved(case())
    assert list(tmp_path.iterdir()) == []


def test_launches_are_added_to_what_a_case_costs():
    budget = Budget(600, {"decode[a]": 2.0, "quantize[a]": 10.0})
    budget.add("decode[a]", 30)
    budget.add("decode[new]", 30)
    assert budget.cost("decode[a]") == 32
    assert budget.cost("decode[new]") == 6 + 30, "what is usual, and the launches"
    assert budget.cost("quantize[a]") == 10


# --- texts to calibrate with -----------------------------------------------------------------


class Words:
    """A tokenizer for which each word is a token."""

    bos_token_id = None

    def __call__(self, texts, add_special_tokens, verbose):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def decode(self, tokens):
        return " ".join(map(str, tokens))


@pytest.mark.parametrize("copied", [False, True])
def test_what_was_calibrated_with_is_not_scored(shelf, model, monkeypatch, tmp_path, copied):
    """Also where the catalog cannot know: a copy of the text in another file."""
    import random

    numbers = random.Random(0)
    texts = {
        name: " ".join(str(numbers.randrange(256)) for _ in range(400))
        for name in ("exam", "lessons")
    }
    if copied:
        texts["lessons"] = texts["exam"]

    def dataset(name):
        (tmp_path / name).write_text(texts[name])
        source = LocalSource(kind="local", path=tmp_path / name)
        return Dataset(name=name, source=source, format="plain", tokens=200, window=100)

    class Taught(Recipe):
        calibration: Dataset
        calibrated_by = ("calibration",)

    loaded = shelf._load(model)
    monkeypatch.setattr(shelf, "_load", lambda _: replace(loaded, tokenizer=Words()))
    recipe = Taught(method="taught", calibration=dataset("lessons"))
    scored = TextWorkload(dataset=dataset("exam"))
    if not copied:
        assert len(shelf.text(Case(Cell(model, recipe), scored, "commit"))) == 4
        return
    with pytest.raises(
        SourceError,
        match=r"recipe taught: calibration: dataset lessons has text that exam scores, such as '\d",
    ):
        shelf.text(Case(Cell(model, recipe), scored, "commit"))


# --- labelled items ---------------------------------------------------------------------------


def test_what_a_model_was_trained_with_is_not_evaluated(tmp_path, monkeypatch):
    """Under another name, too; the parts of one dataset are apart as they are."""
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "text {n}", "label": {n % 2}}}\n' for n in range(40)))

    def dataset(**fields):
        data = {"of": "texts", "format": "jsonl", "classes": ["a", "b"], **fields}
        source = {"kind": "local", "path": str(texts)}
        return LabelledDataset.model_validate({**data, "source": source})

    lessons = dataset(name="lessons", items=10, train_items=15, validation_items=5)
    source = TrainedSource.model_validate({"kind": "trained", "dataset": lessons})
    trained = Model.model_construct(name="tiny", source=source)
    for exam in (lessons, dataset(name="few", items=10)):
        _keep_unseen(trained, exam, load_items(exam))
    many = dataset(name="many", items=11)
    with pytest.raises(SourceError, match=r"labelled many: model tiny was trained .* 'text \d+'"):
        _keep_unseen(trained, many, load_items(many))
    _keep_unseen(Model.model_construct(source=None), many, load_items(many))


# --- what does not fit -------------------------------------------------------------------------


def room(monkeypatch, free):
    monkeypatch.setattr(sys.modules[Shelf.__module__], "available_memory", lambda device: free)


def test_a_cell_that_does_not_fit_beside_its_base_loads_nothing(shelf, case, loads, monkeypatch):
    room(monkeypatch, 1_000_000)
    with pytest.raises(DoesNotFit) as told:
        shelf.execution(case())
    assert not loads
    said = "tiny-hqq-w4g64 does not fit in the memory of cpu: (base 0.00 + quantized 0.00 + "
    assert said in str(told.value)
    assert "and 0.00 GiB are available" in str(told.value)


def test_the_process_that_watches_memory_never_has_base_and_model_whole(shelf, case, monkeypatch):
    room(monkeypatch, 1_000_000)
    asked = case()
    dataset = Dataset(name="text", format="plain", source=asked.cell.model.source, window=8)
    memory = MemoryWorkload(kind="memory", name="b1", dataset=dataset, batch=1, length=8)
    told = {}
    for workload in (asked.workload, memory):
        with pytest.raises(DoesNotFit) as raised:
            shelf.execution(replace(asked, workload=workload))
        told[workload.kind] = str(raised.value)
    assert "(base 0.00 + quantized 0.00 + key-value cache 0.00) GiB" in told["decode"]
    assert "(base 0.00) GiB" in told["memory"]


def test_where_free_memory_is_not_known_it_is_tried(shelf, case, loads, monkeypatch):
    room(monkeypatch, None)
    shelf.quantized(case())
    assert len(loads) == 1


def test_only_what_is_not_loaded_yet_has_to_fit(shelf, case, loads, monkeypatch):
    shelf.quantized(case(4))
    assert len(loads) == 1
    room(monkeypatch, 1_500_000)  # the base takes as much, and is there
    shelf.execution(case(8))
    room(monkeypatch, 10_000)
    with pytest.raises(DoesNotFit, match=r"\(quantized 0.00 \+ key-value cache 0.00\) GiB"):
        shelf.execution(case(3))
    assert len(loads) == 1


def test_a_cell_at_hand_is_not_asked_for_room_again(shelf, case, monkeypatch):
    """But each phase is for its cache: of 12 tokens, 12 KiB, of 2000 tokens, 2 MB."""
    shelf.execution(case())
    shelf.quantized(case())
    room(monkeypatch, 20_000)
    shelf.execution(case())
    with pytest.raises(DoesNotFit, match=r"of cpu: \(key-value cache 0.00\) GiB x 1.15"):
        shelf.execution(case(output=1996))
