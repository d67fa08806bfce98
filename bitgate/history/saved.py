"""One saved run, read whole or refused with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bitgate.history.record import SCHEMA
from bitgate.history.schema import Absent, Record, what_is_wrong

if TYPE_CHECKING:
    import numpy as np

Items = Mapping[str, "np.ndarray"]

SHOWN = 3  #: names in a message before it says how many more there are
NOTE = "bitgate_accepted"  #: key of `extra_info` with who accepted a record, when and why
ENTRY = "entry"  #: column and key that tell records of one case apart in a file of many runs'


class RunError(ValueError):
    """A run that cannot be used; the message names it, what is wrong, and the remedy."""


@dataclass(frozen=True)
class Side:
    """A case as one run has measured it; `items` are its per-item scores."""

    record: Record
    run: str
    items: Items


@dataclass(frozen=True)
class SavedRun:
    """All that a file holds of Bitgate."""

    path: Path
    #: `0007`, or what the file is called
    name: str
    #: revision that was measured, with `+` if it had changes; None without git
    commit: str | None
    #: ISO 8601 in UTC, always as long, so that the order of texts is that of time
    when: str
    #: several of one case only in a file of accepted records
    records: Mapping[str, tuple[Record, ...]]
    #: cases, or tests that are none, that missed a bound or broke, and why
    failed: Mapping[str, str]
    #: tests that the run did not come to
    unfinished: int
    #: cases without a record, and why; runs before this was saved name only those that failed
    absent: Sequence[Absent] = ()

    @property
    def passed(self) -> bool:
        """Whether it may be a reference: whole, and nothing in it failed."""
        return not self.failed and not self.unfinished

    @property
    def trouble(self) -> str:
        """Why it did not pass."""
        parts = [f"{len(self.failed)} failed: {names(self.failed)}"] if self.failed else []
        if self.unfinished:
            parts.append(f"{self.unfinished} tests did not finish")
        return ", ".join(parts)

    @property
    def label(self) -> str:
        """`0007 (5d41402+)`."""
        return f"{self.name} ({short(self.commit)})" if self.commit else self.name

    def side(self, record: Record, number: int = 0) -> Side:
        """One of its records with its scores, which are empty where none are on disk.

        `number` tells which of several records of a case. RunError if the file of scores is broken.
        """
        return Side(record, self.name, self._items.get((record.case, number), {}))

    @cached_property
    def _items(self) -> dict[tuple[str, int], Items]:
        return read_items(self.path.with_suffix(".parquet"))


def meant(path: Path) -> dict[str, Mapping[str, Any]]:
    """The cases of a file of accepted records that had failed a gate, and were accepted even so;
    with the note of who did, when and why."""
    found: dict[str, Mapping[str, Any]] = {}
    for benchmark in _content(path)["benchmarks"]:
        info = benchmark.get("extra_info", {})
        note, record = info.get(NOTE, {}), info.get("bitgate", {})
        if note.get("even_failed") and record.get("outcome") == "fail":
            found[record["case"]] = note
    return found


def short(commit: str | None) -> str:
    """`5d41402+` of a whole revision with changes."""
    if commit is None:
        return "no commit"
    return commit[:7] + ("+" if commit.endswith("+") else "")


def names(which: Iterable[str]) -> str:
    """The first few of them, and how many more."""
    listed = list(which)
    shown = ", ".join(islice(listed, SHOWN))
    return f"{shown} and {len(listed) - SHOWN} more" if len(listed) > SHOWN else shown


# --- reading -------------------------------------------------------------------------------


def read_run(path: Path) -> SavedRun:
    """A run of Bitgate as pytest-benchmark has saved it.

    Raises:
        RunError: if it cannot be read, is broken or empty, or of another schema; a part of a run,
            without a record that is broken, would pass for the whole.
    """
    return read_content(path)[0]


def read_content(path: Path) -> tuple[SavedRun, dict[str, Any]]:
    """The same, with all else that the file holds; what Bitgate knows of it is sound."""
    content = _content(path)
    records: dict[str, list[Record]] = {}
    try:
        for data in records_in(content):
            record = _record(path, data)
            hardware = record.hardware or _hardware(content, record)
            known = record.model_copy(update={"hardware": hardware})
            records.setdefault(record.case, []).append(known)
        info = content.get("bitgate", {})
        failed = {str(name): str(why) for name, why in info.get("failed", {}).items()}
        unfinished = int(info.get("unfinished", 0))
        absent = [Absent.model_validate(one) for one in info.get("absent", [])]
        commit = _commit(content, records)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        why = what_is_wrong(error) if isinstance(error, ValidationError) else why
        raise RunError(f"{path} is no run that pytest-benchmark has saved: {why}") from None
    if not records:
        raise RunError(
            f"{path} holds no records of Bitgate: it was made by other benchmarks, or nothing was "
            "measured"
        )
    try:
        when = utc(content.get("datetime")).isoformat(timespec="microseconds")
    except ValueError as error:
        raise RunError(
            f"{path}: datetime: {error}: nobody knows whether it is newer than others; write down "
            "when it was measured, or remove it"
        ) from None
    for case, found in records.items():
        for record in found:
            if record.outcome == "fail":
                failed.setdefault(case, _why(record))
    named = {case: tuple(found) for case, found in records.items()}
    run = SavedRun(path, name_of(path), commit, when, named, failed, unfinished, absent)
    return run, content


def utc(text: object) -> datetime:
    """The time that a run says it was measured at; one without an offset is taken to be in UTC.

    Raises:
        ValueError: if it is none, as ISO 8601 writes it.
    """
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
        if time is not None:
            return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"expected a time such as 2026-01-31T12:00:00+00:00, got {text!r}")


def name_of(path: Path) -> str:
    """The number of a run in pytest-benchmark's storage, or the name of the file."""
    numbered = re.match(r"(\d{4})_", path.name)
    return numbered[1] if numbered else path.stem


def _content(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise RunError(f"{path} is no JSON file") from None
    if not text.strip():
        raise RunError(f"{path} is empty: the run that was writing it did not finish")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is no whole JSON file: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise RunError(f"{path} is no run that pytest-benchmark has saved")
    return content


def records_in(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What Bitgate has recorded, as it is written."""
    for benchmark in content["benchmarks"]:
        if "bitgate" in benchmark.get("extra_info", {}):
            yield benchmark["extra_info"]["bitgate"]


def _record(path: Path, data: Mapping[str, Any]) -> Record:
    if data["schema"] != SCHEMA:
        raise RunError(
            f"{path}: {data.get('case', 'a case')} is recorded in schema {data['schema']}; this "
            f"version of Bitgate reads schema {SCHEMA}: measure again, or use the version that "
            "made it"
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        raise RunError(
            f"{path}: {data.get('case', 'a case')}: {what_is_wrong(error)} (docs/schema.md)"
        ) from None


def _hardware(content: Mapping[str, Any], record: Record) -> str | None:
    """Of a run that was saved before records said it: its machine's processor."""
    if record.execution.device != "cpu":
        return None
    machines = [m["machine_info"] for m in content.get("bitgate", {}).get("machines", [])]
    for machine in [*machines, content.get("machine_info", {})]:
        if not machines or machine.get("node") == record.host:
            brand = machine.get("cpu", {}).get("brand_raw")
            return None if brand is None else str(brand)
    return None


def _commit(content: Mapping[str, Any], records: Mapping[str, list[Record]]) -> str | None:
    for found in records.values():
        for record in found:
            if record.commit:
                return record.commit
    info = content.get("commit_info") or {}
    commit = info.get("id")
    if not commit or commit == "unversioned":
        return None
    return f"{commit}+" if info.get("dirty") else str(commit)


def _why(record: Record) -> str:
    failing = (v.get("text", "") for v in record.verdicts if v.get("outcome") == "fail")
    return str(next(failing, "failed"))


def read_items(path: Path) -> dict[tuple[str, int], Items]:
    """The scores of each case, column by column, without the columns that it does not have;
    nothing if there is no such file.

    Raises:
        RunError: if the file is broken.
    """
    from pyarrow import ArrowException, parquet

    if not path.is_file():
        return {}
    try:
        table = parquet.read_table(path).to_pandas()
        keys = ["case", ENTRY] if ENTRY in table else ["case"]
        found: dict[tuple[str, int], Items] = {}
        for key, rows in table.groupby(keys, observed=True, sort=False):
            case, *number = key
            columns = rows.drop(columns=keys).dropna(axis=1, how="all")
            found[str(case), int(number[0]) if number else 0] = {
                str(name): columns[name].to_numpy() for name in columns
            }
    except (OSError, ValueError, KeyError, TypeError, ArrowException) as error:
        raise RunError(f"{path} cannot be read, its runs' scores are lost: {error}") from None
    return found
