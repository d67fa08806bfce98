"""Start-up counts: collecting the shipped benchmarks and asking for help load nothing heavy."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "transformers", "hqq", "scipy", "pandas", "pyarrow", "datasets"),
    *("bitsandbytes", "gemlite", "gguf", "gptqmodel", "llama_cpp", "torchao"),
)


def seconds(*command: str) -> float:
    """Of the processor, with compiled modules kept from one start to the next, as they are by
    default."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "start",
    [
        "import pytest; pytest.main(['bench', '--collect-only', '-q', '--cadence', 'weekly'])",
        "from bitgate.cli import main; main(['--help'], standalone_mode=False)",
        "from bitgate.cli import main; main(['gates'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported(start):
    code = f"{start}\nimport sys\nprint('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "loaded: []" in done.stdout, done.stdout


def test_asking_each_method_for_its_kernel_imports_nothing_heavy():
    """It is asked during collection, of every recipe that comes along; what cannot be served says
    so without torch as well."""
    code = """
from pathlib import Path
from bitgate import kernels, quantize
from bitgate.catalog.reading import load_entries

catalog = load_entries(Path("fixtures"), quantize.recipe_types())
linears = tuple(
    quantize.LinearShape(f"model.layers.{block}.{part}", 128, 128, False)
    for block in range(2)
    for part in (*(f"self_attn.{x}_proj" for x in "qkvo"),
                 *(f"mlp.{x}_proj" for x in ("down", "up", "gate")))
)
shapes = quantize.ModelShapes((*linears, quantize.LinearShape("lm_head", 256, 128, False)), 0, 0,
                              "lm_head", False)
chosen = {}
for recipe in catalog.recipes.values():
    for device in kernels.DEVICES:
        try:
            kernel = quantize.method(recipe.method).kernel(shapes, recipe, device)
        except (kernels.KernelError, quantize.QuantizeError):
            continue
        chosen.setdefault(recipe.method, set()).add(kernel)
assert chosen.keys() == quantize.METHODS.keys(), chosen
served = set().union(*chosen.values())
assert {"cpu-int4", "cpu-int8", "integer", "dequantize"} <= served, served
"""
    # but for the table of GGUF's types, which takes a tenth of a second
    heavy = [name for name in HEAVY if name != "gguf"]
    loaded = f"import sys\nprint('loaded:', [m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{loaded}"], cwd=ROOT, capture_output=True, text=True
    )
    assert "loaded: []" in done.stdout, done.stdout + done.stderr


def test_collecting_only_lists():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "-k", "llama and w4"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line]
    assert all(line.startswith("bench/") and "w4" in line for line in lines[:-1]), done.stdout
    assert "tests collected" in lines[-1]


def test_collecting_costs_less_than_six_times_importing_pytest():
    # in turn, and the best of several, so that a busy machine does not decide
    pairs = [
        (
            seconds("-m", "pytest", "bench", "--collect-only", "-q"),
            seconds("-c", "import pytest"),
        )
        for _ in range(5)
    ]
    collecting, importing = (min(column) for column in zip(*pairs, strict=True))
    assert collecting < 6 * importing
