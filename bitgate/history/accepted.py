"""What someone has accepted as the baseline: `accepted.json`, kept with the project.

A file like a saved run, with the per-item scores beside it, so that whatever reads a run reads it.
It holds one record for each case, way of executing it and kind of machine; who accepted it, when
and why is beside each.
"""

from __future__ import annotations

import getpass
import json
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitgate.history.items import write_rows
from bitgate.history.saved import ENTRY, NOTE, Items, RunError, SavedRun, names, read_run
from bitgate.history.schema import Record
from bitgate.history.store import differing

FILE = "accepted.json"  #: beside thresholds.toml
SCORED = (
    "perplexity",
    "accuracy",
    "task",
    "quantize",
)  #: kinds of cases that are compared item by item


@dataclass
class Baseline:
    """A file of accepted records, as it is to be written."""

    path: Path
    #: benchmarks as pytest-benchmark has them, with the record and the scores of each
    entries: list[tuple[dict[str, Any], Record, Items]] = field(default_factory=list)
    #: of the file, what is not its benchmarks
    head: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """What is there; an empty one if nothing is. RunError if it cannot be read."""
        if not path.is_file():
            return cls(path)
        return cls(path, list(_entries(read_run(path))))

    def accept(
        self, run: SavedRun, cases: Collection[str], reason: str, *, even_failed: str | None
    ) -> None:
        """Take these cases of a run, instead of what was accepted for the same execution.

        Raises:
            RunError: if one lacks the scores that later runs would be compared with; then none is
                taken.
        """
        found = [entry for entry in _entries(run) if entry[1].case in cases]
        _refuse_without_scores(run, found)
        content = json.loads(run.path.read_text("utf-8"))
        note = {
            "reason": reason,
            "by": user(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": run.path.name,
            "measured": run.when,
            "commit": run.commit,
            **({"even_failed": even_failed} if even_failed else {}),
        }
        for benchmark, record, items in found:
            self.entries = [e for e in self.entries if not _replaces(record, e[1])]
            self.entries.append((_noted(benchmark, record, note), record, items))
        self.entries.sort(key=lambda entry: (entry[1].case, entry[1].hardware or ""))
        self.head = {
            key: content[key]
            for key in ("machine_info", "commit_info", "version")
            if key in content
        }

    def write(self) -> list[Path]:
        """The file and its scores, each whole or not at all; which of them there are."""
        benchmarks = [benchmark for benchmark, _, _ in self.entries]
        text = json.dumps(
            {**self.head, "datetime": datetime.now(UTC).isoformat(), "benchmarks": benchmarks},
            indent=1,
        )
        seen: dict[str, int] = {}
        rows: list[tuple[dict[str, str | int], Items]] = []
        for _, record, items in self.entries:
            number = seen.setdefault(record.case, 0)
            seen[record.case] += 1
            if items:
                rows.append(({"case": record.case, ENTRY: number}, items))
        scores = self.path.with_suffix(".parquet")
        write_rows(scores, rows)
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            partial.write_text(text + "\n", "utf-8")
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        return [self.path, *([scores] if rows else [])]


def choose(
    run: SavedRun, wanted: Callable[[str], bool], *, all_of_it: bool, even_failed: str | None
) -> list[str]:
    """The cases of a run that are wanted; `all_of_it` says that every one is.

    Raises:
        RunError: if there is none, or one failed and there is no reason to take it even so.
    """
    cases = [case for case in run.records if wanted(case)]
    if not cases:
        raise RunError(f"{run.label} has no such case; it has {names(run.records)}")
    failed = [case for case in run.failed if wanted(case) or all_of_it]
    if failed and not even_failed:
        raise RunError(
            f"{run.label} has failed: {names(failed)}: what failed is no baseline; accept the "
            "other cases with -k, or these too with --even-failed REASON"
        )
    if run.unfinished and all_of_it and not even_failed:
        raise RunError(
            f"{run.label} is not whole, {run.unfinished} tests did not finish: choose cases with "
            "-k, or give --even-failed REASON"
        )
    return cases


def _refuse_without_scores(
    run: SavedRun, entries: Sequence[tuple[dict[str, Any], Record, Items]]
) -> None:
    bare = [record.case for _, record, items in entries if record.kind in SCORED and not items]
    if not bare:
        return
    scores = run.path.with_suffix(".parquet")
    why = "has none of them" if scores.is_file() else "is missing"
    raise RunError(
        f"{run.label} has no per-item scores of {names(bare)}: {scores} {why}, and later runs "
        "could not be compared with it; put that file back beside the run, accept other cases "
        "with -k, or measure again with --benchmark-autosave"
    )


def _replaces(new: Record, old: Record) -> bool:
    """Whether two records are of the same case, executed alike on the same kind of machine."""
    return (
        old.case == new.case
        and old.hardware == new.hardware
        and not [why for why in differing(old, new, timed=True) if not why.startswith("workload")]
    )


def _entries(run: SavedRun) -> Iterator[tuple[dict[str, Any], Record, Items]]:
    """In the order of the file."""
    counted: dict[str, int] = {}
    for benchmark in json.loads(run.path.read_text("utf-8"))["benchmarks"]:
        data = benchmark.get("extra_info", {}).get("bitgate")
        if data is None:
            continue
        number = counted.setdefault(data["case"], 0)
        counted[data["case"]] += 1
        record = run.records[data["case"]][number]
        yield benchmark, record, run.side(record, number).items


def _noted(benchmark: Mapping[str, Any], record: Record, note: Mapping[str, Any]) -> dict[str, Any]:
    """Without the time of every round, which nobody compares, and with what it was measured on."""
    info = benchmark["extra_info"]
    known = {**info["bitgate"], "hardware": record.hardware}
    return {
        **benchmark,
        "stats": {key: value for key, value in benchmark["stats"].items() if key != "data"},
        "extra_info": {**info, "bitgate": known, NOTE: note},
    }


def user() -> str:
    """Who accepts: as git knows them, or as the system does."""
    try:
        done = subprocess.run(
            ["git", "config", "user.name"], capture_output=True, check=True, text=True, timeout=10
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"
