"""Fresh processes: what they are told and tell, and every way in which they end."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext

import numpy as np
import psutil
import pytest

from bitgate.catalog import Execution, LocalSource, Model, PhaseWorkload
from bitgate.measure import fresh, launches, speed
from bitgate.measure.launch import ABANDONED, Job, run
from bitgate.measure.launches import LaunchError, Launches
from bitgate.measure.processes import ASSUMED
from bitgate.sources import reporting_to

#: what a launch does, as far as whoever starts it can see, without a model
LAUNCH = """
import json, sys, os, time
job, result = sys.argv[1:]
pairs = json.load(open(job))["pairs"]
def go():
    os.write(1, b"ready\\n")
    assert sys.stdin.readline() == "go\\n"
def done(packed=3):
    items = {"pair": list(range(pairs)), "tokens": [4] * pairs,
             "seconds": [0.05] * pairs, "base_seconds": [0.1] * pairs,
             "cpu_seconds": [0.03] * pairs, "base_cpu_seconds": [0.09] * pairs}
    seen = {"items": items, "packed_layers": packed, "expected_layers": 3,
            "layer_classes": "Linear8bitLt"}
    json.dump(seen, open(result, "w"))
"""


@pytest.fixture(autouse=True)
def silent():
    with reporting_to(lambda report: None):
        yield


@pytest.fixture
def launching(tmp_path, monkeypatch):
    """A measurement whose launches run this code instead."""

    def make(code, number=2, **options):
        script = tmp_path / "launch.py"
        script.write_text(LAUNCH + code)
        monkeypatch.setattr(launches, "COMMAND", (sys.executable, "-S", str(script)))
        return Launches(job(tmp_path), number, ASSUMED, label="decode[tiny]", **options)

    return make


def job(path, **changes):
    fields = {
        "model": Model(name="tiny", family="llama", source=LocalSource(kind="local", path=path)),
        "method": "hqq",
        "quantized": path / "quantized.safetensors",
        "execution": Execution("cpu", "float32", 1, "cpu-int4"),
        "workload": PhaseWorkload(kind="decode", name="b1", prompt=4, output=20),
        "pairs": 8,
    }
    return Job(**{**fields, **changes})


def test_a_job_is_the_same_on_the_other_side(tmp_path):
    there = Job.model_validate_json(job(tmp_path).model_dump_json())
    assert there == job(tmp_path)
    assert isinstance(there.execution, Execution)


# --- what is seen --------------------------------------------------------------------------


def test_each_launch_is_a_batch(launching, items_of, metrics_of):
    measurement = launching("go(); done()", number=3)
    assert measurement.least == 3 * 8
    items = items_of(measurement, batches=4)
    assert items["launch"].tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    metrics = metrics_of(measurement, items)
    speedup = metrics["speedup"]
    assert speedup.value == pytest.approx(2)
    assert (speedup.interval.unit, speedup.interval.n) == ("process", 4)
    assert "over 4 processes" in str(speedup)
    assert "wall clock" in str(speedup)
    assert metrics["cpu_speedup"].value == pytest.approx(3)
    assert "CPU clock" in str(metrics["cpu_speedup"])
    assert metrics["latency_ms"].value == pytest.approx(1000 * 0.05 / 4)
    assert (metrics["packed_layers"].value, metrics["packed_layers"].expected) == (3, 3)


def test_it_goes_on_until_the_limit(launching):
    batches = list(launching("go(); done()", number=1, limit=3).batches())
    assert [batch.items["launch"][0] for batch in batches] == [0, 1, 2]


def test_a_fallback_in_one_of_them_is_seen(launching, items_of, metrics_of, tmp_path):
    code = f"go(); done(3 - os.path.exists({str(tmp_path / 'one')!r}))"
    measurement = launching(code + f"; open({str(tmp_path / 'one')!r}, 'w')")
    items = items_of(measurement, batches=2)
    assert metrics_of(measurement, items)["packed_layers"].value == 2


def test_others_are_kept_quiet_while_it_times_and_not_while_it_loads(launching, tmp_path):
    log = tmp_path / "log"

    @contextmanager
    def alone():
        with log.open("a") as file:
            print("alone", file=file)
        yield
        with log.open("a") as file:
            print("not alone", file=file)

    say = f"log = open({str(log)!r}, 'a', buffering=1)\n"
    code = say + "print('loads', file=log); go(); print('times', file=log); done()"
    list(launching(code, limit=2, alone=alone).batches())
    assert log.read_text().split("\n") == [*["loads", "alone", "times", "not alone"] * 2, ""]


# --- how it ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("sys.exit('no such model')", "launch 1 ended with exit status 1: no such model"),
        ("go(); raise ValueError('boom')", "launch 1 ended with exit status 1: ValueError: boom"),
        (
            "go(); os.kill(os.getpid(), 9)",
            "launch 1 was killed by signal SIGKILL, and said nothing",
        ),
        ("go()", "launch 1 ended with exit status 0, and said nothing"),
        (
            "os.write(1, b'hello\\n'); go()",
            "launch 1 was killed by signal SIGKILL, and said nothing",
        ),
    ],
)
def test_a_launch_that_fails_says_how(launching, code, how):
    with pytest.raises(LaunchError) as caught:
        list(launching(code).batches())
    assert str(caught.value).splitlines()[0] == f"decode[tiny]: {how}"


def test_its_last_lines_are_shown(launching):
    code = "print('\\n'.join(f'line {n}' for n in range(50)), file=sys.stderr); sys.exit(7)"
    with pytest.raises(LaunchError) as caught:
        list(launching(code).batches())
    lines = str(caught.value).splitlines()
    assert lines[0] == "decode[tiny]: launch 1 ended with exit status 7: line 49"
    assert lines[-1] == "  line 49"
    assert len(lines) == 1 + fresh.LAST_LINES


def test_the_second_may_fail_too(launching, tmp_path):
    first = str(tmp_path / "first")
    code = f"go(); os.path.exists({first!r}) and sys.exit('gone'); open({first!r}, 'w'); done()"
    batches = launching(code).batches()
    next(batches)
    with pytest.raises(LaunchError, match="launch 2 ended with exit status 1: gone"):
        next(batches)


@pytest.mark.parametrize("code", ["time.sleep(60)", "go(); time.sleep(60)"])
def test_a_launch_that_hangs_is_stopped(launching, monkeypatch, code):
    monkeypatch.setattr(launches, "PATIENCE", 1.0)
    start = time.monotonic()
    with pytest.raises(LaunchError, match="launch 1 was stopped after 1 s"):
        list(launching(code).batches())
    assert time.monotonic() - start < 20


def pid_of(path):
    while not (path / "pid").is_file() or not (path / "pid").read_text():
        time.sleep(0.01)
    return int((path / "pid").read_text())


def test_nothing_stays_behind_after_ctrl_c(launching, tmp_path):
    """Not even what the launch itself has started."""
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))"
    code = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"{note}\ngo(); time.sleep(60)"
    )

    @contextmanager
    def interrupted():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        list(launching(code, alone=interrupted).batches())
    assert is_gone(pid_of(tmp_path))


def is_gone(pid):
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


# --- the other side ------------------------------------------------------------------------

OTHER_SIDE = """
import os
from bitgate.measure.launch import _asking
alone = _asking()
print("a library says something", flush=True)
with alone():
    os.write(2, b"timing")
"""


@pytest.fixture
def other_side():
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_SIDE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.wait()


def test_it_asks_waits_and_ends(other_side):
    assert other_side.stdout.readline() == b"ready\n"
    other_side.stdin.write(b"go\n")
    other_side.stdin.flush()
    assert other_side.wait(timeout=30) == 0
    assert other_side.stdout.read() == b""
    assert other_side.stderr.read() == b"a library says something\ntiming"


def test_it_ends_when_whoever_started_it_does(other_side):
    assert other_side.stdout.readline() == b"ready\n"
    other_side.stdin.close()
    assert other_side.wait(timeout=30) == ABANDONED


@pytest.fixture(scope="module")
def saved(llama, hqq, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    llama().save_pretrained(folder / "tiny")
    hqq(llama()).save(folder / "quantized.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_it_times_the_saved_cell_beside_its_base(saved, monkeypatch, kind):
    monkeypatch.setattr(speed, "SHORTEST_STEP", 0.002)
    workload = PhaseWorkload(kind=kind, name="w", prompt=4, output=8)
    model = job(saved).model.model_copy(
        update={"source": LocalSource(kind="local", path=saved / "tiny")}
    )
    wanted = job(saved, workload=workload, model=model, pairs=6)
    seen = json.loads(json.dumps(run(wanted, nullcontext)))
    assert (seen["packed_layers"], seen["expected_layers"]) == (14, 14)
    items = seen["items"]
    assert {len(column) for column in items.values()} == {6}
    assert min(items["seconds"] + items["base_seconds"]) > 0
    assert np.isfinite(items["cpu_seconds"]).all()
