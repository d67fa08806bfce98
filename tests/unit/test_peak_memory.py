"""The most memory that a process had: known amounts, phase by phase, by each method."""

import subprocess
import sys

import pytest

from bitgate.measure import peak_memory
from bitgate.measure.measurement import UnavailableError
from bitgate.measure.peak_memory import PROC, HighWaterMark, Samples, resident

MIB = 2**20
#: a process that allocates 400 MiB, frees them, then allocates 100 MiB, and prints both peaks
KNOWN = """
import sys, time
from bitgate.measure import peak_memory
meter = getattr(peak_memory, sys.argv[1])(peak_memory.PROC)
def phase(size):
    before = meter.now()
    meter.start()
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(0.3)  # many samples, on a busy machine, too
    del block
    print((meter.peak() - before) / 2**20)
phase(400 * 2**20)
phase(100 * 2**20)
"""


def known(kind):
    # by a small process: the largest ever outlives exec(2), and this one is large
    command = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", KNOWN, kind]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) for line in ran.stdout.split()]


@pytest.mark.parametrize("kind", [HighWaterMark, Samples])
def test_each_phase_has_a_peak_of_its_own(kind):
    assert known(kind.__name__) == pytest.approx([400, 100], rel=0.05)


def test_what_is_gone_between_two_samples_is_seen_where_the_largest_ever_grew(monkeypatch):
    monkeypatch.setattr(peak_memory, "INTERVAL", 3600.0)
    largest = [500 << 40]
    monkeypatch.setattr(peak_memory, "_largest_ever", lambda: largest[-1])
    meter = Samples(PROC)
    meter.start()
    largest.append(600 << 40)
    assert meter.peak() == 600 << 40
    meter.start()
    assert meter.peak() < 1 << 40  # it did not grow, so it is of an earlier phase, or process


def test_the_best_there_is_is_chosen(tmp_path):
    assert isinstance(resident(PROC), HighWaterMark)
    assert isinstance(resident(tmp_path), Samples)  # no such files there


def test_a_mark_that_cannot_be_reset_is_not_taken(tmp_path):
    (tmp_path / "status").write_text("VmRSS:\t 10 kB\nVmHWM:\t 99 kB\n")
    (tmp_path / "clear_refs").mkdir()  # which cannot be written, even by root
    assert isinstance(resident(tmp_path), Samples)


def test_without_any_it_says_why(tmp_path, monkeypatch):
    def closed(*_):
        raise PermissionError("psutil: /proc is hidden")

    monkeypatch.setattr("psutil.Process", closed)
    with pytest.raises(UnavailableError) as error:
        resident(tmp_path)
    assert "no peak of memory can be had here: VmHWM:" in str(error.value)
    assert "ru_maxrss where it grew: psutil: /proc is hidden" in str(error.value)


def test_without_proc_it_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="grew: psutil: "):
        resident(tmp_path)


def test_a_status_without_the_mark(tmp_path):
    (tmp_path / "clear_refs").write_text("")
    (tmp_path / "status").write_text("VmRSS:\t 10 kB\n")
    with pytest.raises(UnavailableError, match="has no VmHWM"):
        HighWaterMark(tmp_path)
