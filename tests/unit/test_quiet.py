"""Timed rounds run while no other process of the host works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from bitgate.measure.measurement import MeasureError
from bitgate.plugin.budget import Budget
from bitgate.plugin.quiet import VARIABLE, Quiet
from bitgate.sources.progress import Lines, reporting_to

pytest_plugins = ["pytester"]

WORKER = """
import json, sys, time
from pathlib import Path
from bitgate.plugin.quiet import Quiet
Path(sys.argv[3], sys.argv[2]).touch()
while not all(Path(sys.argv[3], number).exists() for number in "01"):
    time.sleep(0.001)  # neither begins before the other is there
quiet, times = Quiet(sys.argv[1] == "on", lambda seconds: None), {"work": [], "alone": []}
for number in range(6):
    with quiet.working():
        start = time.monotonic()
        time.sleep(0.03)
        times["work"].append((start, time.monotonic()))
        if number % 2 == int(sys.argv[2]):
            with quiet.alone():
                start = time.monotonic()
                time.sleep(0.03)
                times["alone"].append((start, time.monotonic()))
print(json.dumps(times))
"""


def run(monkeypatch, tmp_path, state):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, state, str(number), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    return [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]


def overlaps(timed, other):
    return sum(
        start < end_of_other and start_of_other < end
        for start, end in timed["alone"]
        for start_of_other, end_of_other in [*other["work"], *other["alone"]]
    )


def test_nobody_works_while_somebody_times(monkeypatch, tmp_path):
    one, two = run(monkeypatch, tmp_path, "on")
    assert len(one["alone"]) == len(two["alone"]) == 3
    assert overlaps(one, two) == overlaps(two, one) == 0


def test_without_the_lock_they_overlap(monkeypatch, tmp_path):
    """Or the test above could not fail."""
    one, two = run(monkeypatch, tmp_path, "off")
    assert overlaps(one, two) + overlaps(two, one) > 0


HOLDER = """
import sys, time
from bitgate.plugin.quiet import Quiet
quiet = Quiet(True, lambda seconds: None)
with quiet.working():
    if sys.argv[1] == "read":
        print("held", flush=True)
        time.sleep(60)
    with quiet.alone():
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    return Quiet(True, lambda seconds: None)


@contextmanager
def holder(mode):
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("mode", ["read", "write"])
def test_who_is_killed_lets_go(quiet, mode):
    with holder(mode) as process:
        lock = quiet._lock
        with pytest.raises(TimeoutError):
            lock.acquire_write(0.2)
        process.kill()
        process.wait()
        with quiet.working(), quiet.alone():
            assert quiet.waited < 1


@pytest.mark.parametrize(("held", "wanted"), [("write", "read"), ("read", "write")])
def test_waiting_can_be_interrupted(quiet, held, wanted):
    """At once, although SQLite lets no signal through while it waits."""
    with holder(held), holder_that_waits(wanted) as waiting:
        waiting.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert b"KeyboardInterrupt" in waiting.communicate(timeout=20)[1]
        assert time.monotonic() - start < 2


@contextmanager
def holder_that_waits(mode):
    process = subprocess.Popen(
        [sys.executable, "-c", f"print('up', flush=True)\n{HOLDER}", mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"up\n"
        time.sleep(1)  # it imports, then waits
        yield process
    finally:
        process.kill()
        process.wait()


def test_an_interrupt_while_alone_does_not_wait_for_others(quiet, monkeypatch):
    taken = []
    take = Quiet._take
    monkeypatch.setattr(Quiet, "_take", lambda self, mode: (taken.append(mode), take(self, mode)))
    with pytest.raises(KeyboardInterrupt), quiet.working(), quiet.alone():
        raise KeyboardInterrupt
    assert taken == ["read", "write"]
    with pytest.raises(ValueError, match="broken"), quiet.working(), quiet.alone():
        raise ValueError("broken")
    assert taken[2:] == ["read", "write", "read"]
    with quiet.working(), quiet.alone():
        pass  # nothing is held any more


def test_being_alone_nests(quiet):
    with quiet.working(), quiet.alone(), quiet.alone():
        assert os.environ[VARIABLE].startswith("write:")
    assert VARIABLE not in os.environ


def test_what_a_test_starts_does_not_wait_for_it(quiet):
    """The test holds the lock until that process ends."""
    inner = (
        "from bitgate.plugin.quiet import Quiet\n"
        "quiet = Quiet(True, lambda seconds: None)\n"
        "with quiet.working():\n    print('works')\n    with quiet.alone(): print('alone')\n"
    )

    def started():
        return subprocess.run(
            [sys.executable, "-c", inner], capture_output=True, text=True, timeout=20, check=False
        )

    with quiet.working():
        done = started()
        assert done.stdout == "works\n"
        assert f"{MeasureError.__name__}: timed rounds cannot be alone in a process" in done.stderr
        with quiet.alone():
            assert started().stdout == "works\nalone\n"
    assert started().stdout == "works\nalone\n"


def test_a_cache_that_cannot_hold_it_is_named(monkeypatch, tmp_path):
    (tmp_path / "locks").write_text("in the way")
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    quiet = Quiet(True, lambda seconds: None)
    with pytest.raises(pytest.UsageError, match=r"locks.*--quiet-timing never"), quiet.working():
        pass


def test_waiting_is_counted_and_not_charged(monkeypatch, tmp_path):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    budget = Budget(60, {"case": 1.0})
    budget.plan(["case"])
    quiet = Quiet(True, budget.pause)
    budget.begin("case")
    before = budget.cost_so_far()
    quiet._wait(lambda timeout: time.sleep(0.2), "nobody")
    assert quiet.waited >= 0.2
    assert budget.cost_so_far() - before < 0.2
    assert not budget.is_over()


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ("write", "another process of this host has timed its case"),
        ("read", "to time a case alone"),
    ],
)
def test_a_long_wait_says_once_what_for(quiet, monkeypatch, held, words):
    monkeypatch.setattr(sys.modules[Quiet.__module__], "PATIENCE", 0.3)
    lines = []

    def wait():
        with holder(held) as process:
            kill = threading.Timer(1.0, process.kill)
            kill.start()
            quiet._take("read" if held == "write" else "write")
            kill.join()
        quiet._drop()

    with reporting_to(Lines(lines.append)):
        wait()
        assert len(lines) == 1
        assert words in lines[0]
        assert "--quiet-timing never" in lines[0]
        wait()  # another wait is another line
        assert len(lines) == 2
        quiet._take("write")  # at once
        quiet._drop()
    assert len(lines) == 2


def test_a_case_without_room_says_how_long_was_waited():
    budget = Budget(60, {"case": 61.0})
    assert "waited" not in budget.why_not("case")
    budget.pause(42)
    assert budget.refuses("case")
    assert budget.why_not("case") == (
        "not measured: it needs about 61 s, and 60 s are left of the budget of 1 min, 42 s of "
        "which this process has waited for others of its host; raise --budget or run fewer cells"
    )


# --- in real runs --------------------------------------------------------------------------


@pytest.fixture
def timing_project(free_project, pytester, monkeypatch):
    """Cases that are alone for a while, and plain tests that work for a while."""
    monkeypatch.setenv("BITGATE_CACHE", str(pytester.path / "cache"))
    free_project(pytester.path)
    for kind in ("quantize", "perplexity"):
        (pytester.path / f"bench/test_{kind}.py").write_text(
            f"import pytest\nfrom noting import note\n"
            f'@pytest.mark.workload("{kind}")\n'
            f"def test_{kind}(case, quiet):\n"
            f"    with quiet.alone():\n        note('alone')\n"
        )
    (pytester.path / "bench/test_plain.py").write_text(
        "import pytest\nfrom noting import note\n"
        '@pytest.mark.parametrize("number", range(8))\n'
        "def test_plain(number):\n    note('plain')\n"
    )
    (pytester.path / "noting.py").write_text(
        "import os, time\n"
        "def note(what):\n"
        "    start = time.monotonic()\n"
        "    time.sleep(0.1)\n"
        f"    with open({str(pytester.path / 'times.txt')!r}, 'a') as file:\n"
        "        file.write(f'{what} {os.getpid()} {start} {time.monotonic()}\\n')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    return pytester


def disturbed(folder):
    """How many timed stretches another process worked in, of how many; and processes in all."""
    lines = [line.split() for line in (folder / "times.txt").read_text().splitlines()]
    noted = [(what, pid, float(start), float(end)) for what, pid, start, end in lines]
    alone = [entry for entry in noted if entry[0] == "alone"]
    bad = sum(
        any(pid != other and start < b and a < end for _, other, a, b in noted)
        for _, pid, start, end in alone
    )
    return bad, len(alone), len({pid for _, pid, _, _ in noted})


@pytest.mark.slow
@pytest.mark.parametrize("timing", ["auto", "never"])
def test_plain_tests_of_another_worker_wait(timing_project, timing):
    done = timing_project.runpytest_subprocess(
        "bench", "-n", "2", f"--quiet-timing={timing}", timeout=120
    )
    done.assert_outcomes(passed=12)
    bad, alone, processes = disturbed(timing_project.path)
    assert (alone, processes) == (4, 2)
    assert (bad == 0) == (timing == "auto")


@pytest.mark.slow
@pytest.mark.parametrize("timing", ["auto", "never"])
def test_runs_of_one_process_wait_for_each_other(timing_project, timing):
    command = [sys.executable, "-m", "pytest", "bench", "-n", "0", f"--quiet-timing={timing}"]
    runs = [
        subprocess.Popen(
            [*command, f"--benchmark-storage=file://runs-{number}"],
            cwd=timing_project.path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for run in runs:
        output = run.communicate(timeout=120)[0]
        assert run.returncode == 0, output
    bad, alone, processes = disturbed(timing_project.path)
    assert (alone, processes) == (8, 2)
    assert (bad == 0) == (timing == "auto")


def test_plain_tests_alone_take_no_lock(timing_project):
    """A project's own tests wait for nobody's timing, as long as they are run without cases."""
    timing_project.runpytest_subprocess("bench", "-k", "plain", timeout=60).assert_outcomes(
        passed=8, deselected=4
    )
    assert not (timing_project.path / "cache" / "locks").exists()
