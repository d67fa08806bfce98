"""Quiet on the host: timed rounds run while nobody else works.

Every test holds a lock for reading as long as it runs; a case that times something exchanges it
for the lock for writing, which waits until the others are between tests and keeps them there. All
processes that run cases take part, whether or not they are workers of one run; so do plain tests
beside cases.
"""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal

import pytest

from bitgate.measure.measurement import MeasureError
from bitgate.plugin import devices

if TYPE_CHECKING:
    from filelock import ReadWriteLock

#: a name per host: caches may lie on a file system that several share
NAME = f"timing-{platform.node()}.db"
#: tells the processes that a test starts what that test holds: `read` or `write`, and of which lock
VARIABLE = "BITGATE_QUIET"
#: seconds after which waiting looks for signals: SQLite, of which the lock is made, handles none
#: while it waits. Between two such stretches, and only there, a reader could pass a waiting writer
POLL = 0.1
#: seconds after which it is said what is waited for
PATIENCE = 10.0

Mode = Literal["read", "write"]


WAITS_FOR: dict[Mode, str] = {
    "read": "another process of this host has timed its case",
    "write": "the other processes of this host are between two tests, to time a case alone",
}


class Quiet:
    """The readers-writer lock of this host, shared by all processes of one user.

    A process that is killed lets go of it: the lock is the kernel's, on an open file.
    """

    def __init__(self, enabled: bool, tell: Callable[[float], None]) -> None:
        self.enabled = enabled
        #: whether plain tests take part; they need not where no case is
        self.among_cases = False
        self.waited = 0.0  #: seconds that the test now running has waited
        self._tell = tell
        self._held: Mode | None = None
        self._working = False

    @classmethod
    def of(cls, config: pytest.Config, tell: Callable[[float], None]) -> Quiet:
        """Needed where processes share a host's cores: on a CPU, or if asked for. `tell` is told of
        the seconds waited, which nobody is charged for."""
        wanted = config.getoption("quiet_timing")
        if wanted == "auto":
            return cls(not devices.on_accelerator(config), tell)
        return cls(wanted == "always", tell)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around a whole test: others may work too, nobody may time."""
        self.waited = 0.0
        # A test that started this process holds the lock as long as this process runs: waiting
        # behind somebody who waits for that test would be forever.
        if not self.enabled or self._inherited is not None:
            yield
            return
        self._take("read")
        self._working = True
        try:
            yield
        finally:
            self._working = False
            self._drop()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around timed rounds, within `working`: nobody else works.

        Raises:
            MeasureError: in a process that was started by a test which is not alone itself.
        """
        if not self.enabled or "write" in (self._held, self._inherited):
            yield
            return
        if self._inherited is not None:
            raise MeasureError(
                "timed rounds cannot be alone in a process that a test has started, as that test "
                "is at work: start it within quiet.alone(), or with --quiet-timing never"
            )
        # no upgrade: two readers that both wait to become the writer would wait forever
        self._drop()
        self._take("write")
        interrupted = False
        try:
            yield
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            self._drop()
            if self._working and not interrupted:
                self._take("read")

    @property
    def _inherited(self) -> str | None:
        """What a test that started this process holds."""
        mode, _, path = os.environ.get(VARIABLE, "").partition(":")
        return mode if self._held is None and path == str(self._path) else None

    @cached_property
    def _path(self) -> Path:
        from bitgate.sources import cache_directory

        return cache_directory() / "locks" / NAME

    @cached_property
    def _lock(self) -> ReadWriteLock:
        """Made when it is needed: a run without cases, or the controller of workers, has none."""
        from filelock import ReadWriteLock

        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return ReadWriteLock(self._path)
        except (OSError, sqlite3.Error) as error:
            raise pytest.UsageError(
                f"{self._path} cannot be the lock that keeps timed rounds alone ({error}): choose "
                "another folder with BITGATE_CACHE, or give --quiet-timing never"
            ) from None

    def _take(self, mode: Mode) -> None:
        acquire = self._lock.acquire_read if mode == "read" else self._lock.acquire_write
        self._wait(acquire, WAITS_FOR[mode])
        self._held = mode
        os.environ[VARIABLE] = f"{mode}:{self._path}"

    def _drop(self) -> None:
        if self._held is not None:
            os.environ.pop(VARIABLE, None)
            self._held = None
            self._lock.release()

    def _wait(self, acquire: Callable[[float], object], what: str) -> None:
        from filelock import Timeout

        start, said = monotonic(), False
        while True:
            try:
                acquire(POLL)
                break
            except Timeout:
                if not said and monotonic() - start > PATIENCE:
                    said = True
                    self._say(what)
        seconds = monotonic() - start
        self.waited += seconds
        self._tell(seconds)

    def _say(self, what: str) -> None:
        from bitgate.sources.progress import track

        with track(f"waiting until {what} ({self._path}; --quiet-timing never does not wait)"):
            pass  # one line; how long it took is in the record
