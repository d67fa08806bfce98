"""The cache builds an item once, whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitgate.sources.cache import cache_directory, is_disk_full, once
from bitgate.sources.errors import SourceError
from bitgate.sources.progress import Report, reporting_to


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path) -> None:
    (folder / "item").write_text("whole")


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.suffix not in (".lock", ""))


def test_builds_once_per_key():
    calls = []

    def build(folder):
        calls.append(folder)
        write(folder)

    first = once("area", "key", 1, build=build, label="x")
    again = once("area", "key", 1, build=build, label="x")
    other = once("area", "key", 2, build=build, label="x")
    assert first == again != other
    assert (first / "item").read_text() == "whole"
    assert len(calls) == 2


def test_default_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("BITGATE_CACHE")
    assert cache_directory().name == "bitgate"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing_and_can_be_repeated(cache, error):
    def fail(folder):
        write(folder)
        raise error

    with pytest.raises(type(error)):
        once("area", "key", build=fail, label="x")
    assert leftovers(cache) == []
    assert (once("area", "key", build=write, label="x") / "item").exists()


def test_a_full_disk_is_explained(cache):
    def fill_up(folder):
        write(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SourceError, match="disk is full") as raised:
        once("area", "key", build=fill_up, label="model smollm2")
    message = str(raised.value)
    assert message.startswith("model smollm2: ")
    assert "MiB are free" in message
    assert "BITGATE_CACHE" in message
    assert leftovers(cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device():
    def fill_up(folder):
        with open("/dev/full", "w") as file:  # noqa: PTH123
            file.write("x")

    with pytest.raises(SourceError, match="disk is full"):
        once("area", "key", build=fill_up, label="x")


def test_a_full_disk_is_recognized_in_the_text_of_a_library():
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(RuntimeError("no such file (os error 2)"))


def test_a_cache_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match="BITGATE_CACHE"):
        once("area", "key", build=write, label="x")


BUILDER = """
import os, sys, time
from pathlib import Path
from bitgate.sources.cache import once

with Path(sys.argv[1]).open("a") as log:
    log.write(f"{os.getpid()}\\n")
while len(Path(sys.argv[1]).read_text().splitlines()) < 2:
    time.sleep(0.001)  # neither begins before the other is there

def build(folder):
    with Path(sys.argv[1]).open("a") as log:
        log.write("built\\n")
    time.sleep(1)
    (folder / "item").write_text("whole")

print((once("area", "key", build=build, label="x") / "item").read_text())
"""


def test_two_processes_build_once(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", BUILDER, str(log)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in outputs] == ["whole\n", "whole\n"]
    pids = {str(process.pid) for process in processes}
    assert sorted(log.read_text().split()) == [*sorted(pids), "built"]
    assert "waiting for another process" in outputs[0][1] + outputs[1][1]


@pytest.mark.parametrize("key", ["old", "new"])
def test_what_a_killed_process_left_is_swept(cache, key):
    code = """
import os, signal
from bitgate.sources.cache import once
def build(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
once("area", "old", build=build, label="x")
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert leftovers(cache) != []
    once("area", key, build=write, label="x")
    assert leftovers(cache) == []


def test_importing_sources_is_light():
    heavy = "{'torch', 'transformers', 'numpy', 'datasets', 'huggingface_hub', 'mwparserfromhell'}"
    code = f"import sys, bitgate.sources; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_waiting_is_reported_to_the_listener(cache):
    import filelock

    final = once("area", "key", build=write, label="x")
    (final / "item").unlink()
    final.rmdir()
    held = filelock.FileLock(final.with_name(final.name + ".lock"))
    reports: list[Report] = []

    def listen(report: Report) -> None:
        reports.append(report)
        held.release()

    held.acquire()
    with reporting_to(listen):
        once("area", "key", build=write, label="model x")
    assert reports[0].label == "model x: waiting for another process that is fetching it"
    assert reports[-1].finished
