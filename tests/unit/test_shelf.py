"""What is in memory, and what is on disk instead; and what launches cost."""

import sys

import pytest

from bitgate import quantize
from bitgate.catalog import Case, Cell, LocalSource, Model, PhaseWorkload
from bitgate.plugin.budget import Budget
from bitgate.plugin.shelf import Shelf


@pytest.fixture(scope="module")
def model(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    llama().save_pretrained(folder)
    return Model(name="tiny", family="llama", source=LocalSource(kind="local", path=folder))


@pytest.fixture
def case(model):
    def make(bits=4):
        recipe = quantize.method("hqq").RECIPE(method="hqq", bits=bits, group_size=64)
        workload = PhaseWorkload(kind="decode", name="b1", prompt=4, output=8, threads=1)
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
