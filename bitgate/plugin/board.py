"""What the workers of one host tell each other about their cases: a file that all of them write to.

The controller could know it too, but has no way to tell a worker anything while it runs.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import NamedTuple


class Work(NamedTuple):
    """A case that is begun: until when it may go on (seconds since the epoch), in which share."""

    until: float
    share: float


@dataclass
class Board:
    """One for each worker, of one file."""

    path: Path
    worker: int  #: any number that no other has

    def __post_init__(self) -> None:
        self._at_work: dict[int, tuple[str, Work]] = {}  #: by worker, who began last comes last
        self._read = 0  #: bytes

    def tell(self, key: str, share: float | None) -> None:
        """This worker begins a case for so many seconds, or has ended it."""
        until = None if share is None else time() + share
        line = json.dumps([self.worker, key, until, share]) + "\n"
        with suppress(OSError), self.path.open("ab", buffering=0) as file:
            file.write(line.encode())  # appended in one piece

    def look(self) -> list[str]:
        """Read what is new; answers with the cases that have begun or ended since the last look."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        seen = []
        for line in whole.splitlines():
            worker, key, until, share = json.loads(line)
            seen.append(key)
            if worker == self.worker:
                continue
            self._at_work.pop(worker, None)
            if until is not None:
                self._at_work[worker] = key, Work(until, share)
        return seen

    def at_work(self, most: int) -> list[tuple[str, Work]]:
        """What the others are at. There are at most so many: one more has been killed."""
        found = list(self._at_work.values())
        return found[max(len(found) - most, 0) :]
