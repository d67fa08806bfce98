"""Runs that are killed by real signals, and `--resume`: nothing that was measured is lost, nothing
is measured twice, and what is saved in the end is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pyarrow import parquet

from .test_run import CASES, records

SLOW = """
pytest_plugins = ["bitgate.plugin"]

import os, time
import pytest
from pathlib import Path
from bitgate.measure.quantization import Quantization

HERE = Path(__file__).parent
batches = Quantization.batches

def wait(at):
    if (HERE / f"slow-{at}").exists():
        (HERE / f"pid-{at}").write_text(str(os.getpid()))
        time.sleep(120)

def slow(self):
    bits = self.recipe.bits
    with (HERE / "measured.txt").open("a") as file:
        print(bits, file=file)
    wait(bits)
    yield from batches(self)

Quantization.batches = slow

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        wait("end")
    return (yield)
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def slow(project):
    """The project, where quantizing to 4 bits takes until it is killed."""
    (project.path / "conftest.py").write_text(SLOW)
    (project.path / "slow-4").touch()
    return project


def journal(project) -> Path:
    return project.path / ".benchmarks" / "unfinished.jsonl"


def entries(project) -> list[dict]:
    lines = journal(project).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def wait(process, for_what, seconds=120):
    end = time.monotonic() + seconds
    while not for_what():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


@contextmanager
def started(project, *arguments):
    process = subprocess.Popen(
        project.command("-v", *arguments),
        cwd=project.path,
        env={**project.environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def killed(project, *arguments, at="4", finished=2):
    """Start, wait until so many cases are finished and the slow place is reached, kill -9."""
    with started(project, *arguments) as process:
        wait(
            process,
            lambda: (
                journal(project).exists()
                and journal(project).read_bytes().count(b"\n") == 1 + finished
                and (project.path / f"pid-{at}").exists()
            ),
        )
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlive their controller"
    (project.path / f"slow-{at}").unlink()
    (project.path / f"pid-{at}").unlink()
    return entries(project)


def is_whole(path, before):
    """All cases, as collected, with those measured before the kill as they were measured."""
    found = records(path)
    assert set(found) == CASES
    assert list(found) == [
        f"{kind}[llama-tiny-hqq-w{bits}g64{suffix}]"
        for bits in (8, 4)
        for kind, suffix in (("quantize", ""), ("perplexity", "-words"))
    ]
    assert before
    for parcel in before:
        now = found[parcel["result"]["case"]]
        assert now["stats"]["data"] == parcel["benchmark"]["data"]
        assert now["extra_info"]["bitgate"] == parcel["result"]["record"]
    scores = parquet.read_table(path.with_suffix(".parquet")).to_pandas()
    assert scores["case"].value_counts()["perplexity[llama-tiny-hqq-w8g64-words]"] == 32
    assert set(scores["case"]) == CASES


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_killed_run_is_resumed(slow, workers):
    header, *before = killed(slow, "-n", workers, "--benchmark-autosave")
    assert slow.saved() == []
    assert {parcel["nodeid"] for parcel in before} < set(header["order"])

    done = slow.run(
        "-n", workers, "--resume", "--benchmark-autosave", "--benchmark-json=whole.json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 tests are finished" in done.stdout
    assert "2 passed" in done.stdout
    assert done.stdout.count("\nhqq-w") == 2  # both rows of the table
    is_whole(slow.path / "whole.json", before)
    (saved,) = slow.saved()
    assert set(records(saved)) == CASES
    # of two workers, either may have been first
    assert sorted((slow.path / "measured.txt").read_text().split()) == ["4", "4", "8"]
    assert not journal(slow).exists()

    again = slow.run("-n", workers, "--resume", "-k", "quantize and w8")
    assert again.returncode == 0
    assert "no .benchmarks/unfinished.jsonl to resume: everything is measured" in again.stdout


def test_a_killed_worker_costs_its_own_case(slow):
    with started(slow, "-n", "2", "--threads", "1", "--benchmark-json=rest.json") as process:
        wait(process, (slow.path / "pid-4").exists)
        (slow.path / "slow-4").unlink()
        os.kill(int((slow.path / "pid-4").read_text()), signal.SIGKILL)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "1 failed, 3 passed" in output
    assert "crashed while running 'bench/test_quantize.py" in output
    lost = "quantize[llama-tiny-hqq-w4g64]"
    assert set(records(slow.path / "rest.json")) == CASES - {lost}
    # what the crash has cost can still be had, also without workers
    assert "1 tests did not finish: --resume" in output
    _, *before = entries(slow)
    done = slow.run("--threads", "1", "--resume", "--benchmark-json=whole.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    is_whole(slow.path / "whole.json", before)
    assert not journal(slow).exists()


def test_an_interrupted_run_is_resumed(slow):
    with started(slow) as process:
        wait(process, (slow.path / "pid-4").exists)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 2, output
    assert "2 tests did not finish: --resume runs them" in output
    _, *before = entries(slow)
    (slow.path / "slow-4").unlink()
    done = slow.run("--resume", "--benchmark-json=whole.json")
    assert done.returncode == 0, done.stdout + done.stderr
    is_whole(slow.path / "whole.json", before)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_another_run_is_refused(slow, workers):
    killed(slow, "-n", workers, "--threads", "1")
    left = journal(slow).read_bytes()
    datasets = slow.path / "fixtures" / "datasets.toml"
    original = datasets.read_text()
    datasets.write_text(original + "seed = 1\n")
    refused = slow.run("-n", workers, "--threads", "2", "--resume", "--benchmark-json=not.json")
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert "unfinished.jsonl is of another run" in refused.stderr
    cases = ", ".join(f"perplexity[llama-tiny-hqq-w{bits}g64-words]" for bits in (8, 4))
    assert f"matrix differs: {cases} defined otherwise" in refused.stderr
    assert "threads 1 -> 2" in refused.stderr
    assert "leave --resume out" in refused.stderr
    assert not (slow.path / "not.json").exists()
    assert journal(slow).read_bytes() == left
    datasets.write_text(original)
    other = slow.run("-n", workers, "--threads", "1", "--resume", "-k", "w4g64")
    assert other.returncode == 4
    assert "selection bench -> bench -k w4g64" in other.stderr


def test_a_cut_line_is_measured_again_and_a_damaged_one_named(slow):
    killed(slow)
    whole = journal(slow).read_bytes()
    lines = whole.split(b"\n")
    journal(slow).write_bytes(b"\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    damaged = slow.run("--resume")
    assert damaged.returncode == 4
    assert "unfinished.jsonl: line 2 is damaged" in damaged.stderr
    # JSON, but not what a case leaves
    broken = {**json.loads(lines[1]), "benchmark": {"data": []}}
    journal(slow).write_bytes(b"\n".join([lines[0], json.dumps(broken).encode(), *lines[2:]]))
    assert "unfinished.jsonl: line 2 is damaged" in slow.run("--resume").stderr

    journal(slow).write_bytes(whole[:-100])
    done = slow.run("--resume", "--benchmark-json=whole.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "its last line was cut, so that case is measured again" in done.stdout
    assert "1 tests are finished" in done.stdout
    assert "3 passed" in done.stdout
    is_whole(slow.path / "whole.json", [json.loads(lines[1])])


def test_what_failed_before_stays_red(slow):
    (slow.path / "thresholds.toml").write_text(
        '[[gate]]\nname = "w8 too big"\nmatch = { bits = 8 }\nrequire.size_mib = { max = 1e-3 }\n'
    )
    killed(slow, "-n", "2")
    done = slow.run("-n", "2", "--resume", "--benchmark-json=whole.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "FAILED before --resume: bench/test_quantize.py" in done.stdout
    assert '[thresholds.toml rule "w8 too big"]' in done.stdout
    assert not journal(slow).exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_when_only_saving_is_missing(slow, workers):
    (slow.path / "slow-4").unlink()
    (slow.path / "slow-end").touch()
    _, *before = killed(slow, "-n", workers, at="end", finished=4)
    done = slow.run("-n", workers, "--resume", "--benchmark-json=whole.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 tests are finished" in done.stdout
    is_whole(slow.path / "whole.json", before)
    assert len((slow.path / "measured.txt").read_text().split()) == 2
    assert not journal(slow).exists()


def test_without_resume_a_backup_is_kept(slow):
    killed(slow)
    left = journal(slow).read_bytes()
    listed = slow.run("--collect-only", "-q", "--resume")
    assert listed.returncode == 0
    assert journal(slow).read_bytes() == left
    nothing = slow.run("-k", "w8", "--benchmark-skip")
    assert nothing.returncode == 0, nothing.stdout + nothing.stderr
    assert journal(slow).read_bytes() == left, "nothing was measured instead"
    done = slow.run("-k", "quantize and w8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would continue it; it moves to unfinished.jsonl.1 as soon as anything" in done.stdout
    assert journal(slow).with_name("unfinished.jsonl.1").read_bytes() == left
    assert not journal(slow).exists()


def test_what_the_budget_had_no_room_for_is_not_finished(slow):
    (slow.path / "fixtures" / "costs.toml").write_text(
        '[seconds]\n"quantize[llama-tiny-hqq-w8g64]" = 3600\n'
        '"perplexity[llama-tiny-hqq-w8g64-words]" = 1\n"quantize[llama-tiny-hqq-w4g64]" = 1\n'
    )
    killed(slow, finished=1)
    done = slow.run("--resume", "--budget", "120", "--benchmark-json=whole.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert set(records(slow.path / "whole.json")) == CASES
