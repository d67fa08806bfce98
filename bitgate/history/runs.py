"""Saved runs, as pytest-benchmark stores them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgate.history.record import SCHEMA

DEPTH = 20  #: runs that are looked through


@dataclass(frozen=True)
class Before:
    """The newest record of each case, and the runs that they are from."""

    records: dict[str, dict[str, Any]]
    runs: dict[str, str]
    unreadable: list[str]


def newest(folder: Path, cases: Collection[str], but: Collection[Path] = ()) -> Before:
    """For each of `cases` its newest record in a folder of runs: the last run may have had only a
    few of them. Looks through the last `DEPTH` runs; `but` names files that do not count."""
    found = Before({}, {}, [])
    excluded = {path.resolve() for path in but}
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.json"), reverse=True)[:DEPTH]:
        wanted = set(cases) - found.records.keys()
        if not wanted:
            break
        if path.resolve() in excluded:
            continue
        records = records_of(path)
        if not records:
            found.unreadable.append(path.stem)
        for case in wanted & records.keys():
            found.records[case] = records[case]
            found.runs[case] = path.stem
    return found


def records_of(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a run by case; of another schema or broken: none, as they cannot be read."""
    try:
        benchmarks = json.loads(path.read_text("utf-8"))["benchmarks"]
        records = [b["extra_info"]["bitgate"] for b in benchmarks if "bitgate" in b["extra_info"]]
        return {r["case"]: r for r in records if r["schema"] == SCHEMA}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
