"""Speed over fresh processes, measured by whole runs; and `bitgate calibrate`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from pyarrow import parquet

from .test_run import records
from .test_workers import comparable

DECODE = "decode[llama-tiny-hqq-w4g64-b1]"
CHOSEN = ("--cadence", "nightly", "-k", "decode", "--launches", "2")


@pytest.mark.slow
def test_two_launches_leave_the_same_with_and_without_workers(project):
    one = project.run(*CHOSEN, "--benchmark-json=one.json")
    two = project.run(*CHOSEN, "-n", "2", "--benchmark-json=two.json")
    for done in (one, two):
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout
        assert "assumed to differ by 5 % between processes: see bitgate calibrate" in done.stdout
    left, right = (
        json.loads((project.path / name).read_text()) for name in ("one.json", "two.json")
    )
    assert comparable(left) == comparable(right)
    record = records(project.path / "one.json")[DECODE]["extra_info"]["bitgate"]
    assert record["metrics"]["speedup"]["value"] > 0
    interval = record["metrics"]["speedup"]["interval"]
    assert (interval["unit"], interval["n"]) == ("process", 2)
    assert record["metrics"]["packed_layers"]["value"] == 14
    for name in ("one", "two"):
        items = parquet.read_table(project.path / f"{name}.parquet").to_pandas()
        assert items["launch"].tolist() == [0] * 8 + [1] * 8
        assert items["order"].tolist() == ["AB", "BA"] * 8
        assert items["seconds"].min() > 0


def broken(project, code):
    """The project, where this is what a launch runs first."""
    (project.path / "conftest.py").write_text(
        'pytest_plugins = ["bitgate.plugin"]\n'
        "import sys\n"
        "from bitgate.measure import launches\n"
        "start = 'from bitgate.measure.launch import main; import os, sys, time; '\n"
        f"code = {code!r}\n"
        "launches.COMMAND = (sys.executable, '-c', start + code)\n"
    )
    return project


def test_a_launch_that_is_killed_is_a_clear_failure(project):
    done = broken(project, "os.kill(os.getpid(), 9)").run(*CHOSEN)
    assert done.returncode == 1
    assert f"{DECODE}: launch 1 was killed by signal SIGKILL, and said nothing" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_ctrl_c_ends_a_launch_too(project):
    note = "open('pid', 'w').write(str(os.getpid())); time.sleep(100)"
    broken(project, note)
    process = subprocess.Popen(
        project.command(*CHOSEN),
        cwd=project.path,
        env=project.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = project.path / "pid"
    end = time.monotonic() + 120
    while not pid.is_file() or not pid.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    import psutil

    assert not psutil.pid_exists(int(pid.read_text()))


# --- bitgate calibrate ---------------------------------------------------------------------


def calibrate(project, *arguments):
    start = "from bitgate.cli import main; main()"
    asked = ("--model", "llama-tiny", "--recipe", "hqq-w4g64", "--workload", "b1")
    return subprocess.run(
        [sys.executable, "-c", start, "calibrate", *asked, *arguments],
        cwd=project.path,
        env=project.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_what_was_calibrated_is_what_one_process_is_judged_with(project):
    done = calibrate(project, "--launches", "3", "--output", "fixtures/calibration.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launch 3: speedup" in done.stdout
    assert "kept in fixtures/calibration.toml" in done.stdout
    (entry,) = tomllib.loads((project.path / "fixtures/calibration.toml").read_text())[
        "calibration"
    ]
    assert (entry["case"], entry["launches"]) == (DECODE, 3)
    assert entry["ratio"] > 0

    run = project.run("--cadence", "nightly", "-k", "decode", "--launches", "1", "-s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"(calibrated on {entry['date']}, 3 launches)" in run.stdout
    assert "bitgate calibrate" not in run.stdout


def test_a_broken_calibration_ends_a_run_before_anything_is_measured(project):
    (project.path / "fixtures/calibration.toml").write_text("[[calibration]]\nratio = 0.1\n")
    run = project.run("--cadence", "nightly", "-k", "decode")
    assert run.returncode == 4
    assert "calibration.toml: [[calibration]] number 1: hardware: this key is missing" in run.stderr
