"""Peaks of memory: a process of their own, what it is told and tells, and what follows."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from bitgate.catalog import Case, Cell, Dataset, Execution, LocalSource, MemoryWorkload, Model
from bitgate.measure import memory
from bitgate.measure.inputs import TOKENS
from bitgate.measure.measurement import MeasureError, UnavailableError
from bitgate.measure.memory import peaks, watched
from bitgate.measure.memory_process import Job, _read, run
from bitgate.plugin import footprint
from bitgate.plugin.footprint import Kept
from bitgate.quantize import method
from bitgate.sources import reporting_to

MIB = 2**20
RECIPE = method("hqq").RECIPE(bits=4, group_size=64, kernel="dequantize")
EXECUTION = Execution("cpu", "float32", 1, "dequantize")


@pytest.fixture(autouse=True)
def silent():
    with reporting_to(lambda report: None):
        yield


def workload(batch=1):
    source = LocalSource(kind="local", path="none")
    dataset = Dataset(name="text", format="plain", source=source, window=8)
    return MemoryWorkload(kind="memory", name=f"b{batch}", dataset=dataset, batch=batch, length=8)


def seen(**changes):
    found = {
        "unavailable": "",
        "how": "VmHWM",
        "before": 700 * MIB,
        "base": 500 * MIB,
        "peaks": {"load": 520 * MIB, "quantize": 550 * MIB, "b1": 300 * MIB},
        "device": {},
        "seconds": {"b1": 0.5},
    }
    return {**found, **changes}


def test_metrics_by_hand(items_of, metrics_of):
    base = seen(peaks={"load": 1, "b1": 600 * MIB})
    measured = peaks(workload(), seen, lambda: base)
    found = metrics_of(measured, items_of(measured, batches=1))
    values = {name: metric.value for name, metric in found.items()}
    assert values == {
        "peak_load_mib": 520,
        "peak_quantize_mib": 550,
        "peak_quantize_ratio": 1.1,
        "peak_evaluate_mib": 300,
        "base_peak_evaluate_mib": 600,
        "peak_evaluate_ratio": 0.5,
    }
    assert found["peak_load_mib"].by == "VmHWM, over 700 MiB"
    assert found["peak_load_mib"].low < 520 < found["peak_load_mib"].high


def test_of_an_accelerator_also_the_device(items_of, metrics_of):
    own = seen(before=0, how="torch's allocator", device={"b1": 2048 * MIB})
    measured = peaks(workload(), lambda: own, lambda: own)
    found = metrics_of(measured, items_of(measured, batches=1))
    assert found["device_peak_mib"].value == 2048
    assert found["device_peak_mib"].by == "torch's allocator"


# --- the process ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    llama().save_pretrained(folder)
    return Model(name="tiny", family="llama", source=LocalSource(kind="local", path=folder))


def test_a_process_sees_a_model_that_it_loads_and_uses_up(tiny):
    """Of a model so small only what is certain: all phases are there, and a batch that makes 64 MiB
    of logits takes at least these."""
    batches = {"small": {TOKENS: torch.zeros(1, 8).long()}}
    batches["large"] = {TOKENS: torch.zeros(256, 256).long()}
    found = watched(tiny, Cell(tiny, RECIPE), EXECUTION, batches, "tiny")
    assert found["how"] == "VmHWM"
    assert list(found["peaks"]) == ["load", "quantize", "small", "large"]
    assert found["peaks"]["large"] - found["peaks"]["small"] > 256 * 256 * 256 * 4
    assert found["base"] == sum(4 * p.numel() for p in _module(tiny).parameters()) + sum(
        b.numel() * b.element_size() for b in _module(tiny).buffers()
    )
    base = watched(tiny, None, Execution("cpu", "float32", 1, "torch"), batches, "tiny")
    assert list(base["peaks"]) == ["load", "small", "large"]


def _module(model):
    from bitgate.sources import load_model

    return load_model(model, dtype=torch.float32).module


def test_a_job_is_the_same_on_the_other_side(tiny, tmp_path):
    job = Job(
        model=tiny,
        method="hqq",
        recipe=RECIPE.model_dump_json(exclude_defaults=True),
        execution=EXECUTION,
        inputs=tmp_path / "inputs",
        names=("b1", "b32"),
    )
    there = Job.model_validate_json(job.model_dump_json())
    assert there == job
    assert method("hqq").RECIPE.model_validate_json(there.recipe) == RECIPE


def test_where_nothing_can_be_seen_it_says_why(tiny, tmp_path, monkeypatch):
    def refuse(device):
        raise UnavailableError("no peak of memory can be had here: hidden")

    monkeypatch.setattr("bitgate.measure.peak_memory.meter", refuse)
    job = Job(model=tiny, method="", recipe=None, execution=EXECUTION, inputs=tmp_path, names=())
    assert run(job)["unavailable"] == "no peak of memory can be had here: hidden"


@pytest.fixture
def process(tmp_path, monkeypatch):
    """The process runs this code instead."""

    def put(code):
        script = tmp_path / "process.py"
        script.write_text(f"import json, os, sys, time\njob, result = sys.argv[1:]\n{code}\n")
        monkeypatch.setattr(memory, "COMMAND", (sys.executable, "-S", str(script)))

    return put


def watch(tiny):
    return watched(
        tiny, None, EXECUTION, {"b1": {TOKENS: torch.zeros(1, 8).long()}}, "memory[tiny]"
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('too large')", r"exit status 1: ValueError: too large"),
        ("os.kill(os.getpid(), 9)", r"was killed by signal SIGKILL, and said nothing"),
        ("", r"ended with exit status 0, and said nothing"),
    ],
)
def test_a_process_that_fails_is_quoted(process, tiny, code, said):
    process(code)
    with pytest.raises(MeasureError, match=rf"memory\[tiny\]: its process .*{said}"):
        watch(tiny)


def test_one_that_hangs_is_stopped(process, tiny, monkeypatch):
    monkeypatch.setattr(memory, "PATIENCE", 0.5)
    process("time.sleep(60)")
    with pytest.raises(MeasureError, match="was stopped after 0 s"):
        watch(tiny)


def test_unavailable_is_no_failure(process, tiny):
    process("json.dump({'unavailable': 'hidden'}, open(result, 'w'))")
    with pytest.raises(UnavailableError, match="unavailable: hidden"):
        watch(tiny)


# --- one process for several cases ---------------------------------------------------------


class Shelf:
    released = 0

    def inputs(self, case):
        return [{TOKENS: torch.zeros(case.workload.batch, 8).long()}]

    def release(self):
        self.released += 1


def test_batches_share_the_process_of_their_cell_and_cells_that_of_their_base(tiny, monkeypatch):
    started = []

    def watching(model, cell, execution, batches, label):
        started.append((cell and cell.recipe.name, execution.kernel, list(batches)))
        return seen(
            peaks={"load": 1, "quantize": 1, **dict.fromkeys(batches, MIB)},
            seconds=dict.fromkeys(batches, 1.0),
        )

    monkeypatch.setattr("bitgate.measure.memory.watched", watching)
    eight = method("hqq").RECIPE(bits=8, group_size=64, kernel="dequantize")
    cases = [
        Case(Cell(tiny, recipe), workload(batch), "commit")
        for recipe in (RECIPE, eight)
        for batch in (32, 1)
    ]
    shelf, kept = Shelf(), Kept()
    for case in cases:
        list(footprint.memory(shelf, case, EXECUTION, kept, cases).batches())
    assert started == [
        (RECIPE.name, "dequantize", ["b1", "b32"]),  # the smallest first
        (None, "torch", ["b1", "b32"]),
        (eight.name, "dequantize", ["b1", "b32"]),
    ]
    assert shelf.released == 3


def test_what_cannot_be_measured_is_not_tried_again():
    """A process that hangs takes half an hour."""
    kept, tried = Kept(), []

    def fail():
        tried.append(1)
        raise UnavailableError("hidden")

    for _ in range(3):
        with pytest.raises(UnavailableError, match="hidden"):
            kept.once("a", fail)
    assert tried == [1]
    assert kept.once("b", lambda: 2) == kept.once("b", lambda: 3) == 2


def test_inputs_are_read_a_batch_at_a_time_into_memory_of_their_own(tmp_path):
    """Of a mapped file all would count that was ever read."""
    tensors = {
        "b1/pixels": torch.ones(1, 3),
        "b32/pixels": torch.zeros(2, 3),
        "b1/ids": torch.ones(1),
    }
    save_file(tensors, tmp_path / "inputs")
    found = _read(tmp_path / "inputs", "b1")
    assert found.keys() == {"pixels", "ids"}
    assert torch.equal(found["pixels"], torch.ones(1, 3))
    assert found["pixels"].untyped_storage().nbytes() == 3 * 4


# --- layer by layer ------------------------------------------------------------------------

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def test_a_model_of_many_layers_is_never_in_memory_twice():
    """In bfloat16, to 8 bits, half of its size: kept beside each other they would take 1.5 times
    the base, and what a layer takes in float32 on top."""
    model = Model(
        name="layers", family="llama", source={"kind": "shapes"}, format="shapes", config=SHAPE
    )
    recipe = method("hqq").RECIPE(bits=8, group_size=64, solver=False, kernel="dequantize")
    execution = Execution("cpu", "bfloat16", 1, "dequantize")
    batch = {"b1": {TOKENS: torch.zeros(1, 8).long()}}
    found = watched(model, Cell(model, recipe), execution, batch, "layers")
    assert found["base"] > 190 * MIB
    assert max(found["peaks"].values()) < 1.3 * found["base"]
    assert found["peaks"]["load"] > 0.95 * found["base"]  # of its own memory, not of a file
    # the base is gone: half of it, and what evaluating takes (0.69 to 0.81 in all), instead of 1.5
    assert found["peaks"]["b1"] < 0.95 * found["base"]
