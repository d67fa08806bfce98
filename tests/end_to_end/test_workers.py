"""Two workers leave what one process leaves: the same records, saved, compared and printed once."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec

import pytest
from pyarrow import parquet

#: what no two measurements of the same thing share
TIMES = {
    "data",
    "prepared",
    "waited",
    "seconds",
    "datetime",
    "cpu",
    "hz_actual",
    "hz_actual_friendly",
    "text",
}
STATISTICS = {"total", "min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "ops"}
OUTLIERS = {"iqr_outliers", "stddev_outliers", "outliers", "ld15iqr", "hd15iqr"}
TIMED = {
    *("quantize_seconds", "speedup", "cpu_speedup", "latency_ms"),
    *("tokens_per_second", "base_tokens_per_second"),
}


def comparable(value, name=""):
    """The same, with every time replaced by its type."""
    if name in TIMES | STATISTICS | OUTLIERS | TIMED:
        return type(value).__name__
    if isinstance(value, dict):
        return {key: comparable(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [comparable(inner, name) for inner in value]
    return value


def test_one_process_and_two_workers_leave_the_same(project):
    one = project.run("--benchmark-json=one.json", "--benchmark-autosave")
    two = project.run("-n", "2", "--benchmark-json=two.json", "--benchmark-autosave")
    for done in (one, two):
        assert done.returncode == 0, done.stdout + done.stderr
        assert "4 passed" in done.stdout
        assert len(re.findall(r"^hqq-w8g64 ", done.stdout, re.MULTILINE)) == 1
    left, right = (
        json.loads((project.path / name).read_text()) for name in ("one.json", "two.json")
    )
    assert comparable(left) == comparable(right)
    assert len(left["benchmarks"]) == 4
    assert "since 0001" in two.stdout
    assert len(project.saved()) == 2
    tables = [parquet.read_table(project.path / f"{name}.parquet") for name in ("one", "two")]
    assert tables[0].column_names == tables[1].column_names
    quality = [t.to_pandas().dropna(subset="nll").drop(columns=["seconds"]) for t in tables]
    assert quality[0].reset_index(drop=True).equals(quality[1].reset_index(drop=True))


@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.slow), "2"])
def test_the_options_of_pytest_benchmark(project, workers):
    """For a plain benchmark too, one without gates."""
    plain = project.path / "bench" / "test_plain.py"
    plain.write_text(
        "import time\n"
        "def test_plain(benchmark):\n    benchmark(time.sleep, 0.001)\n"
        "def test_no_benchmark():\n    pass\n"
    )
    chosen = ("-n", workers, "-k", "plain or no_benchmark")
    saved = project.run(*chosen, "--benchmark-save=plain", "--benchmark-only")
    assert saved.returncode == 0, saved.stdout + saved.stderr
    assert "1 passed, 1 skipped" in saved.stdout
    assert len(project.saved()) == 1
    compared = project.run(*chosen, "--benchmark-compare", "--benchmark-compare-fail=min:90000%")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "Comparing against benchmarks from" in compared.stdout + compared.stderr
    assert "test_plain (0001_plain" in compared.stdout
    plain.write_text(plain.read_text().replace("0.001", "0.05"))
    failing = project.run(*chosen, "--benchmark-compare", "--benchmark-compare-fail=min:500%")
    assert failing.returncode != 0
    assert "Performance has regressed" in failing.stdout + failing.stderr
    disabled = project.run(*chosen, "--benchmark-disable", "--benchmark-autosave")
    assert "2 passed" in disabled.stdout
    assert len(project.saved()) == 1
    skipped = project.run(*chosen, "--benchmark-skip")
    assert "1 passed, 1 skipped" in skipped.stdout


def test_a_histogram_is_drawn_once(project):
    """And where it cannot be drawn, that is said before anything is measured."""
    (project.path / "bench" / "test_plain.py").write_text(
        "from bitgate.plugin.benchmark import Rounds\n"
        "def test_plain(benchmark):\n"
        "    with Rounds(benchmark) as rounds:\n"
        "        rounds.add([0.25, 0.5, 1.0])\n"
    )
    left = []
    for workers in ("0", "2"):
        done = project.run("-n", workers, "-k", "plain", "--benchmark-histogram=plots/of")
        plots = {
            path.name: re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", path.read_text())
            for path in project.path.glob("plots/*")
        }
        shutil.rmtree(project.path / "plots", ignore_errors=True)
        left.append((done.returncode, done.stderr, plots))
        assert "Traceback" not in done.stdout + done.stderr
    assert left[0] == left[1]
    status, said, plots = left[0]
    if find_spec("pygal"):
        assert status == 0
        assert list(plots) == ["of.svg"]
    else:
        assert status == 4
        assert "ERROR: --benchmark-histogram: pygal is not installed" in said
        assert not plots
