"""The most memory that this process had between two moments, and how that is known.

On a CPU it is the resident set. Linux keeps its high-water mark, and lets a process reset it
(proc_pid_clear_refs(5), since 2.6.22); elsewhere samples have to do, and the largest since the
process began (getrusage(2)) where it grew. On an accelerator torch's allocator keeps count itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from bitgate.measure.measurement import UnavailableError

PROC = Path("/proc/self")
INTERVAL = 0.002  #: seconds between two samples


class Meter(Protocol):
    """Says what the most was since `start`; several phases follow one another."""

    how: str  #: how the figure is known, for a reader

    def now(self) -> int:
        """Bytes in use."""
        ...

    def start(self) -> None:
        """A phase begins."""
        ...

    def peak(self) -> int:
        """The phase is over: the most bytes in use during it."""
        ...


def meter(device: str) -> Meter:
    """The best there is here.

    Raises:
        UnavailableError: if there is none; it says why.
    """
    return AllocatorPeak(device) if device.startswith("cuda") else resident(PROC)


def resident(proc: Path) -> Meter:
    """Of the resident set, by what `proc` allows, which is usually /proc/self."""
    lacking = []
    for kind in (HighWaterMark, Samples):
        try:
            return kind(proc)
        except (OSError, ValueError, ImportError, UnavailableError) as error:
            lacking.append(f"{kind.how}: {error}")
    raise UnavailableError(f"no peak of memory can be had here: {'; '.join(lacking)}")


class HighWaterMark:
    """Linux's own, reset at the start of each phase."""

    how = "VmHWM"

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self.start()
        self.peak()

    def now(self) -> int:
        return _status(self._proc, "VmRSS")

    def start(self) -> None:
        (self._proc / "clear_refs").write_text("5")

    def peak(self) -> int:
        return _status(self._proc, "VmHWM")


class Samples:
    """A thread that looks every few milliseconds. What is freed again in between it misses, unless
    the largest resident set of the process so far (getrusage(2)) grew in the phase: then that is
    the phase's peak. It outlives exec(2), so one that does not grow may be another process's."""

    how = f"samples every {1000 * INTERVAL:g} ms, ru_maxrss where it grew"

    def __init__(self, proc: Path) -> None:
        import psutil

        try:
            self._process = psutil.Process()
            self._most = self.now()
        except psutil.Error as error:
            raise UnavailableError(f"psutil: {error}") from None
        self._before = _largest_ever()
        self._over = Event()
        self._thread: Thread | None = None

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def start(self) -> None:
        self.peak()
        self._before = _largest_ever()
        self._most, self._over = self.now(), Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self) -> int:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
        self._most = max(self._most, self.now())
        if (largest := _largest_ever()) > self._before:
            self._most = max(self._most, largest)
        return self._most

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self._most = max(self._most, self.now())


class AllocatorPeak:
    """torch's allocator's own: tensors, without what the driver and its kernels need."""

    how = "torch's allocator"

    def __init__(self, device: str) -> None:
        self._device = device

    def now(self) -> int:
        import torch

        torch.cuda.synchronize(self._device)
        return int(torch.cuda.memory_allocated(self._device))

    def start(self) -> None:
        import torch

        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        import torch

        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device))


def device_in_use(device: str) -> int | None:
    """The most bytes of an accelerator in use since the peak was reset, by whomever: what the
    driver says now, and what the allocator has given back since. None on a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, total = torch.cuda.mem_get_info(device)
    given_back = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
    return int(total - free + given_back)


def _status(proc: Path, key: str) -> int:
    """Bytes, of `VmHWM:   13580 kB`."""
    for line in (proc / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise UnavailableError(f"{proc / 'status'} has no {key}")


def _largest_ever() -> int:
    """Bytes; 0, which never grows, where there is no getrusage(2)."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
