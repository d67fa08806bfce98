"""Quiet on the host: timed rounds run while no other cell works.

Every case holds a lock for reading as long as it runs; a case that times something exchanges it
for the lock for writing, which waits until the others are between cases and keeps them there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import pytest

from bitgate.plugin import benchmark

#: a name per host: caches may lie on a file system that several share
NAME = f"timing-{platform.node()}.db"


class Quiet:
    """The readers-writer lock of this host, shared by all processes of one user."""

    def __init__(self, enabled: bool, tell: Callable[[float], None]) -> None:
        self.waited = 0.0  #: seconds that the case now running has waited
        self._tell = tell
        self._lock = None
        if enabled:
            from filelock import ReadWriteLock

            from bitgate.sources import cache_directory

            folder = cache_directory() / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = ReadWriteLock(folder / NAME)

    @classmethod
    def of(cls, config: pytest.Config, tell: Callable[[float], None]) -> Quiet:
        """Needed where workers share a host's cores: on a CPU, or if asked for. `tell` is told of
        the seconds waited, which nobody is charged for."""
        wanted = config.getoption("quiet_timing")
        if wanted == "auto":
            on_cpu = not config.getoption("device").startswith("cuda")
            return cls(benchmark.is_worker(config) and on_cpu, tell)
        return cls(wanted == "always", tell)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around a whole case: others may work too, nobody may time."""
        self.waited = 0.0
        if self._lock is None:
            yield
            return
        self._wait(self._lock.acquire_read)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around timed rounds, within `working`: nobody else works."""
        if self._lock is None:
            yield
            return
        # no upgrade: two readers that both wait to become the writer would wait forever
        self._lock.release()
        try:
            self._wait(self._lock.acquire_write)
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._wait(self._lock.acquire_read)

    def _wait(self, acquire: Callable[[], object]) -> None:
        start = monotonic()
        acquire()
        seconds = monotonic() - start
        self.waited += seconds
        self._tell(seconds)
