"""The journal of a run that is not finished: what is measured is on disk at once, so that a
killed run can be continued.

JSON lines: a header that says what run this is, then one line for every finished case.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from bitgate.catalog import Case
from bitgate.gates.thresholds import Gate
from bitgate.history.schema import what_is_wrong

SCHEMA = 2
SHOWN = 3  #: names in a difference before it says how many more there are
BACKUPS = 5  #: journals of runs that were not continued


class JournalError(Exception):
    """The journal cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True)
class Header:
    """Which run a journal is of. Two runs may share one only if all but `order` is the same."""

    #: of the checkout that measures, without a mark for changes
    commit: str | None
    #: a digest of what the checkout changes since then
    changes: str | None
    cadence: str
    #: of every case that is due: its key, and a digest of its whole definition
    matrix: Mapping[str, str]
    #: of every gate: its name, and a digest of it
    gates: Mapping[str, str]
    #: the options that decide how cases are executed
    execution: Mapping[str, str | int]
    versions: Mapping[str, str]
    #: arguments that choose tests, as they are typed
    selection: str
    #: all node ids as they were collected
    order: Sequence[str]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Contents:
    """What is left of a journal, and how far it can be trusted."""

    header: Header | None  #: None if not even this was written whole
    #: of each finished case, the last entry by node id
    parcels: dict[str, dict[str, Any]]
    #: the line of each
    lines: dict[str, int]
    kept: int  #: bytes up to the end of the last whole line
    cut: int  #: bytes after it: a line that was being written


def fingerprints(cases: Iterable[Case]) -> dict[str, str]:
    """A digest of each case's full definition (model, recipe and workload), by key."""
    return {case.key: _digest(case.cell.model, case.cell.recipe, case.workload) for case in cases}


def gate_fingerprints(gates: Iterable[Gate]) -> dict[str, str]:
    """A digest of each gate, by name and in their order."""
    return {gate.name: _digest(gate) for gate in gates}


def digest(fingerprints: Mapping[str, str]) -> str:
    """Of all of them, in their order: of a whole matrix, or of all gates."""
    return hashlib.sha256(json.dumps(list(fingerprints.items())).encode()).hexdigest()[:16]


def _digest(*parts: BaseModel) -> str:
    text = json.dumps([part.model_dump(mode="json") for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- writing -------------------------------------------------------------------------------


class Journal:
    """Written by one process at a time, which holds a lock beside it."""

    def __init__(self, path: Path) -> None:
        """Take the journal at `path`, whatever it holds; JournalError if a run is using it."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise JournalError(
                f"{path} is being written by another run: wait for its end, or keep this run's "
                "results elsewhere with --benchmark-storage"
            ) from None
        self._file: io.FileIO | None = None

    def begin(self, header: Header) -> None:
        """Start anew; what was here becomes the newest backup."""
        if self.path.exists():
            self.path.replace(backup_of(self.path))
            for old in backups(self.path)[:-BACKUPS]:
                old.unlink(missing_ok=True)
        self._file = self.path.open("xb", buffering=0)
        self._write(asdict(header))
        _sync_folder(self.path.parent)  # or the file's name would be lost with the power

    def go_on(self, contents: Contents) -> None:
        """Continue what is here, after the last whole line of it."""
        self._file = self.path.open("r+b", buffering=0)
        self._file.truncate(contents.kept)
        self._file.seek(contents.kept - 1)
        if self._file.read(1) != b"\n":
            self._file.write(b"\n")

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def append(self, parcel: Mapping[str, Any]) -> None:
        """A finished case; it is on disk when this returns.

        When it cannot be written (a full disk, an interrupt), the journal stays as it was before.
        """
        self._write(parcel)

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        before = self._file.tell()
        rest = memoryview(json.dumps(line).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:  # also an interrupt, after which the case may be written once more
            with suppress(OSError):
                self._file.truncate(self._file.seek(before))
            raise

    def close(self) -> None:
        """Leave it to whoever continues the run."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def remove(self) -> None:
        """The run is saved: nobody needs it any more."""
        self.path.unlink(missing_ok=True)
        self.close()


def is_in_use(path: Path) -> bool:
    """Whether a run is writing it now; if not, who wrote it was killed."""
    try:
        with FileLock(f"{path}.lock", timeout=0):
            return False
    except Timeout:
        return True


def backups(path: Path) -> list[Path]:
    """Journals that runs did not continue, the oldest first: `unfinished.jsonl.1`, `.2`, ..."""
    found = [old for old in path.parent.glob(f"{path.name}.*") if old.suffix[1:].isdecimal()]
    return sorted(found, key=_number)


def backup_of(path: Path) -> Path:
    """Where the journal goes that a new run does not continue."""
    return path.with_name(f"{path.name}.{max(map(_number, backups(path)), default=0) + 1}")


def _number(backup: Path) -> int:
    return int(backup.suffix[1:])


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- reading -------------------------------------------------------------------------------


def read(path: Path) -> Contents:
    """All of a journal; a last line that was cut while it was written is left out.

    Any other line that cannot be read is an error: something else than a crash has damaged it.
    """
    with path.open("rb") as file:
        lines = file.readlines()
    header: Header | None = None
    parcels: dict[str, dict[str, Any]] = {}
    numbers: dict[str, int] = {}
    kept = 0
    for number, line in enumerate(lines, 1):
        try:
            entry = _entry(line)
            if number == 1:
                header = _header(path, entry)
            else:
                if not isinstance(entry["nodeid"], str):
                    raise TypeError("nodeid is no text")
                parcels[entry["nodeid"]], numbers[entry["nodeid"]] = entry, number
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise damaged(path, number, error) from None
        kept += len(line)
    return Contents(header, parcels, numbers, kept, sum(map(len, lines)) - kept)


def _entry(line: bytes) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise TypeError("not a table")
    return entry


def _header(path: Path, entry: dict[str, Any]) -> Header:
    if entry["schema"] != SCHEMA:
        raise JournalError(
            f"{path} has schema {entry['schema']}, this Bitgate reads {SCHEMA}: continue with the "
            "Bitgate that began the run, or measure everything without --resume"
        )
    return Header(**entry)


def damaged(path: Path, number: int, error: Exception) -> JournalError:
    """The error about a line that cannot be read."""
    remedy = "that line; its case" if number > 1 else "the file; everything"
    if isinstance(error, ValidationError):
        why = what_is_wrong(error)
    else:
        why = f"{type(error).__name__}: {error}"
    return JournalError(
        f"{path}: line {number} is damaged ({why}): delete {remedy} is then measured again"
    )


# --- comparing -----------------------------------------------------------------------------


def difference(left: Header, now: Header) -> list[str]:
    """Why a run with header `now` cannot continue that of `left`; nothing if it can."""
    found = [
        *_changed("commit", left.commit, now.commit),
        *_changed("uncommitted changes", left.changes, now.changes),
        *_changed("cadence", left.cadence, now.cadence),
        *_changed("selection", left.selection or "everything", now.selection or "everything"),
        *_entries("matrix differs", left.matrix, now.matrix),
        *_entries("gates differ", left.gates, now.gates),
    ]
    if left.gates == now.gates and list(left.gates) != list(now.gates):
        found.append("gates differ: their order, of which the last one that fits a case counts")
    for one, other in ((left.execution, now.execution), (left.versions, now.versions)):
        for name in dict.fromkeys([*one, *other]):
            found += _changed(name, one.get(name), other.get(name))
    return found


def _changed(name: str, left: object, now: object) -> list[str]:
    return [] if left == now else [f"{name} {_text(left)} -> {_text(now)}"]


def _text(value: object) -> str:
    return "none" if value is None else str(value)


def _entries(title: str, left: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    parts = {
        "new": [key for key in now if key not in left],
        "gone": [key for key in left if key not in now],
        "defined otherwise": [key for key in left if key in now and left[key] != now[key]],
    }
    texts = [f"{_names(keys)} {what}" for what, keys in parts.items() if keys]
    return [f"{title}: {', '.join(texts)}"] if texts else []


def not_planned_any_more(planned: Iterable[str], collected: Iterable[str]) -> str | None:
    """What tests a run lacks that another had planned, in words; None if it has them all."""
    found = set(collected)
    gone = [nodeid for nodeid in planned if nodeid not in found]
    return f"selection without {_names(gone)}" if gone else None


def _names(keys: Sequence[str]) -> str:
    shown = ", ".join(islice(keys, SHOWN))
    return f"{shown} and {len(keys) - SHOWN} more" if len(keys) > SHOWN else shown
