"""What the plugin costs beside what is measured, on thousands of cells that cost nothing."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from bitgate.catalog import load
from bitgate.quantize import LinearShape, ModelShapes, recipe_types
from bitgate.quantize.lock import Lock, LockedModel
from bitgate.sources import declared

GRID = list(product((1, 2, 3, 4, 8), (8, 16, 32, 64, 128), ("", "-axis0"), ("", "-rtn")))
RECIPES = "".join(
    f"[[recipe]]\nmethod = 'hqq'\nbits = [1, 2, 3, 4, 8]\ngroup_size = [8, 16, 32, 64, 128]\n"
    f"axis = [0, 1]\nsolver = {solver}\n"
    for solver in ("true", "false")
)
THRESHOLDS = "".join(
    f"[[gate]]\nname = 'w{bits}'\nmatch = {{ bits = {bits} }}\n"
    "require.packed_layers = { within = 0 }\nrequire.reload_difference = { max = 0 }\n"
    for bits in (1, 2, 3, 4, 8)
)
BENCH = """
import pytest
from bitgate.catalog import Execution
from bitgate.measure.measurement import Batch
from bitgate.metric import Metric

class Nothing:
    least = 1
    def batches(self):
        yield Batch([0.001] * 8, {"nll": [float(i) for i in range(32)]})
    def metrics(self, items, level, nominal):
        return [Metric("packed_layers", 7, expected=7), Metric("reload_difference", 0.0)]

@pytest.fixture
def execution():
    return Execution("cpu", "float32", 1, "dequantize")

@pytest.mark.workload("quantize")
def test_quantize(case, benchmark, gate):
    gate.decide(benchmark, Nothing())
"""
PLAIN = """
import pytest

@pytest.mark.parametrize("number", range({cells}))
def test_plain(number, benchmark):
    benchmark.pedantic(lambda: None, rounds=8)
"""
CLOCK = """
import time
pytest_plugins = ["bitgate.plugin"]

def pytest_runtest_logreport(report):
    if report.when == "teardown":
        with open("clock.txt", "a") as file:
            file.write(f"{time.monotonic()}\\n")
"""


def make(folder: Path, cells: int) -> Path:
    """A project of so many cells with a benchmark each, and as many plain ones."""
    models = [f"llama-{number}" for number in range(cells // len(GRID))]
    names = [f"hqq-w{bits}g{group}{axis}{solver}" for bits, group, axis, solver in GRID]
    entry = {"models": models, "recipes": names}
    files = {
        "fixtures/models.toml": "".join(
            f'[model.{name}]\nfamily = "llama"\nsource = {{ kind = "local", path = "none" }}\n'
            for name in models
        ),
        "fixtures/recipes.toml": RECIPES,
        "fixtures/matrix.toml": '[[matrix]]\ncadence = "commit"\nquantize = true\n'
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry.items()),
        "thresholds.toml": THRESHOLDS,
        "pytest.toml": '[pytest]\naddopts = ["--import-mode=importlib"]\n',
        "conftest.py": CLOCK,
        "bench/test_nothing.py": BENCH,
        "plain/test_plain.py": PLAIN.format(cells=cells),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def processor_seconds() -> float:
    """What processes that have ended took: the clock's, where nothing else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(folder: Path, *arguments: str) -> tuple[str, list[float]]:
    """What pytest prints, and when each test ended, with the end of the process as the last."""
    (folder / "clock.txt").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    ended = time.monotonic()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    clock = folder / "clock.txt"
    times = [float(line) for line in clock.read_text().split()] if clock.exists() else []
    return done.stdout, [*times, ended]


def lock(folder: Path) -> None:
    """Make shapes of all models known: as many layers as SmolLM2's, no two models alike."""
    fixtures = folder / "fixtures"
    path = fixtures / "models.toml"
    pinned = f'kind = "hub", repo = "a/b", revision = "{40 * "0"}"'
    path.write_text(path.read_text().replace('kind = "local", path = "none"', pinned))
    found, models = Lock.read(fixtures), load(fixtures, recipe_types()).models
    for number, model in enumerate(models.values()):
        parts = ("q", 1), ("k", 1), ("v", 1), ("o", 1), ("gate", 4), ("up", 4), ("down", 4)
        layers = [
            LinearShape(f"model.layers.{block}.{part}_proj", 64 * times * (1 + number), 640, False)
            for block in range(30)
            for part, times in parts
        ]
        shapes = ModelShapes(tuple(layers), number, 0, None, False)
        found.models[model.name] = LockedModel.of(declared(model) or "", shapes)
    found.path.write_text(found.text())
    assert all(found.current(model) for model in models.values())


@pytest.mark.parametrize("locked", [False, True])
def test_ten_thousand_cells_are_collected_in_ten_seconds(tmp_path, locked):
    folder = make(tmp_path, 10_000)
    if locked:  # each recipe is held against each model, before anything is collected
        lock(folder)
    before = processor_seconds()
    out, _ = run(folder, "bench", "--collect-only")
    assert "10000 tests collected in " in out, out[-500:]
    assert processor_seconds() - before < 10


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_cell_costs_milliseconds_however_many_there_are(tmp_path, workers, capsys):
    cells = 2_000
    folder = make(tmp_path, cells)
    save = ("-n", workers, "--benchmark-json=run.json", "--benchmark-quiet", "--budget=30")
    _, ours = run(folder, "bench", *save)
    saved = json.loads((folder / "run.json").read_text())["benchmarks"]
    assert len(saved) == cells
    assert all("bitgate" in record["extra_info"] for record in saved)
    if workers == "0":
        _, theirs = run(folder, "plain", *save)
        added = ((ours[-1] - ours[0]) - (theirs[-1] - theirs[0])) / cells
    else:  # pytest-benchmark alone has nothing to set against it
        added = (ours[-1] - ours[0]) / cells
    quarter = cells // 4
    first, last = ours[quarter] - ours[0], ours[cells - 1] - ours[cells - 1 - quarter]
    with capsys.disabled():
        print(f"\n-n {workers}: {1000 * added:.1f} ms a cell", end="; ")  # noqa: T201
        print(f"the last quarter takes {last / first:.2f} x the first")  # noqa: T201
    assert added < 0.020
    assert last < 1.5 * first
