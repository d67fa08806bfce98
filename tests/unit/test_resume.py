"""`--resume` of a run that was killed, in projects whose cases cost nothing: what it refuses, and
that nothing is lost by that."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from bitgate.history import origin
from bitgate.plugin.journal import keeper_of

pytest_plugins = ["pytester"]

STOPS = """
import os, pathlib, signal, time

def pytest_runtest_setup(item):
    if pathlib.Path("dies").exists() and "test_perplexity" in item.nodeid:
        os.kill(os.getpid(), signal.SIGKILL)
    if pathlib.Path("waits").exists() and "test_perplexity" in item.nodeid:
        pathlib.Path("is-waiting").touch()
        time.sleep(120)
"""
#: tests in the order in which they run
QUANTIZE, PERPLEXITY = (
    [f"bench/test_{kind}.py::test_{kind}[llama-free-{recipe}{suffix}]" for recipe in recipes]
    for kind, suffix, recipes in (
        ("quantize", "", ("hqq-w4g64", "hqq-w4g64-dequantize")),
        ("perplexity", "-words", ("hqq-w4g64", "hqq-w4g64-dequantize")),
    )
)


@pytest.fixture
def project(free_project, pytester):
    free_project(pytester.path)
    with (pytester.path / "conftest.py").open("a") as file:
        file.write(STOPS)
    return pytester


@pytest.fixture
def journal(project):
    return project.path / ".benchmarks" / "unfinished.jsonl"


def run(project, *arguments):
    return project.runpytest_subprocess("bench", "--threads", "1", *arguments, timeout=240)


@pytest.fixture
def killed(project, journal):
    """One case is finished."""
    (project.path / "dies").touch()
    assert run(project).ret == -9
    (project.path / "dies").unlink()
    assert len(journal.read_text().splitlines()) == 2
    return journal.read_bytes()


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_a_part_of_the_run(project, journal, killed, workers):
    """However it was chosen: what was to be measured would be missing, and the journal gone."""
    cache = project.path / ".pytest_cache" / "v" / "cache" / "lastfailed"
    cache.parent.mkdir(parents=True)
    for choice in ("--lf", "--ignore=bench/test_perplexity.py"):
        cache.write_text(json.dumps(dict.fromkeys(QUANTIZE, True)))
        refused = run(project, "-n", workers, "--resume", choice, "--benchmark-json=part.json")
        assert refused.ret == pytest.ExitCode.USAGE_ERROR
        refused.stderr.fnmatch_lines(
            [
                "ERROR: --resume: .benchmarks/unfinished.jsonl is of another run:",
                f"  selection without {', '.join(PERPLEXITY)}".replace("[", "[[]"),
                "leave out options that choose tests (--lf, --sw, --ignore), or leave --resume*",
            ]
        )
        assert journal.read_bytes() == killed
    cache.unlink()
    whole = run(project, "-n", workers, "--resume", "--ff", "--benchmark-json=whole.json")
    whole.assert_outcomes(passed=3)
    names = [
        benchmark["fullname"]
        for benchmark in json.loads((project.path / "whole.json").read_text())["benchmarks"]
    ]
    assert sorted(names) == sorted([*QUANTIZE, *PERPLEXITY])
    assert not journal.exists()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
def test_stopping_early_keeps_the_journal(project, journal, killed, option):
    (project.path / "bench" / "test_perplexity.py").write_text(
        "import pytest\n"
        '@pytest.mark.workload("perplexity")\n'
        "def test_perplexity(nothing, benchmark, gate):\n    assert False\n"
    )
    stopped = run(project, "--resume", option)
    stopped.assert_outcomes(failed=1)
    stopped.stdout.fnmatch_lines(["2 tests did not finish: --resume runs them*"])
    assert journal.exists()


def test_other_gates(project, journal, killed):
    """A run has the verdicts of one file of gates."""
    gates = project.path / "thresholds.toml"
    gates.write_text(gates.read_text().replace("{ within = 0 }", "{ within = 0.5 }"))
    refused = run(project, "--resume")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["  gates differ: all defined otherwise"])
    assert journal.read_bytes() == killed


def without(entry, *path):
    """What a line says, without one key."""
    *outer, key = path
    for name in outer:
        entry = entry[name]
    del entry[key]


DAMAGES = {
    "no failed": lambda entry: without(entry, "failed"),
    "failed in words": lambda entry: entry.update(failed="no"),
    "no name": lambda entry: entry.update(nodeid=7),
    "no verdicts": lambda entry: without(entry, "result", "record", "verdicts"),
    "a value that is no number": lambda entry: entry["result"]["record"]["metrics"][
        "packed_layers"
    ].update(value="many"),
    "a duration that is no number": lambda entry: entry["benchmark"].update(data=["long"]),
    "no duration": lambda entry: entry["benchmark"].update(data=[]),
}


def test_a_damaged_line_is_refused_before_anything_is_measured(
    project, journal, killed, monkeypatch
):
    """Not when all the rest is measured, and would be lost."""
    monkeypatch.setattr(origin, "checkout", None)  # the plugin changes it in this process
    config = project.parseconfigure("bench", "--threads=1", "--resume")
    header, line = killed.splitlines()
    for what, damage in DAMAGES.items():
        entry = json.loads(line)
        damage(entry)
        journal.write_bytes(header + b"\n" + json.dumps(entry).encode() + b"\n")
        damaged = journal.read_bytes()
        with pytest.raises(pytest.UsageError) as refused:
            keeper_of(config).start()
        assert "unfinished.jsonl: line 2 is damaged (" in str(refused.value), what
        assert "delete that line; its case is then measured again" in str(refused.value)
        assert journal.read_bytes() == damaged
    journal.write_bytes(killed)
    keeper_of(config).start()  # as it was, it is taken
    keeper_of(config).journal.close()


@pytest.mark.parametrize("option", ["--benchmark-skip", "--benchmark-disable"])
def test_other_timing(project, journal, killed, option):
    refused = run(project, "--resume", option)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["  timing on -> *"])
    assert journal.read_bytes() == killed


def test_what_measures_nothing_leaves_it(project, journal, killed):
    for options in (["--setup-plan"], ["--setup-plan", "--resume"], ["--benchmark-skip"]):
        assert run(project, *options).ret == 0
        assert journal.read_bytes() == killed


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["-n", "0"], ["-n", "2"], ["--resume"]])
def test_a_run_beside_one_that_measures(project, journal, arguments):
    """It is refused before it measures anything, unless it measures nothing."""
    (project.path / "waits").touch()
    (project.path / "bench" / "test_plain.py").write_text("def test_plain(): pass\n")
    first = subprocess.Popen(
        [sys.executable, "-m", "pytest", "bench", "--threads", "1"],
        cwd=project.path,
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while not (project.path / "is-waiting").exists():
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        left = journal.read_bytes()
        second = run(project, *arguments)
        assert second.ret == pytest.ExitCode.USAGE_ERROR
        second.stderr.fnmatch_lines(["ERROR: *is being written by another run*"])
        second.stderr.fnmatch_lines(["*elsewhere with --benchmark-storage"])
        plain = run(project, "-k", "plain")
        plain.assert_outcomes(passed=1, deselected=4)
        plain.stdout.no_fnmatch_line("*killed run*")
        elsewhere = run(project, "-m", "quantize", "--benchmark-storage=file://elsewhere")
        elsewhere.assert_outcomes(passed=2, deselected=3)
        assert first.poll() is None
        assert journal.read_bytes() == left
    finally:
        first.kill()
        first.wait()
    assert [path.name for path in journal.parent.iterdir() if path.suffix[1:].isdecimal()] == []
