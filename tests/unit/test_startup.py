"""Start-up counts: collecting the shipped benchmarks and asking for help load nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "hqq", "scipy", "pandas", "pyarrow", "datasets")


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


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
