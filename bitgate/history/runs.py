"""Saved runs, as pytest-benchmark stores them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bitgate.history.record import SCHEMA


def latest(folder: Path, but: Collection[Path] = ()) -> Path | None:
    """The newest saved run of a folder, or None; `but` names files that do not count."""
    excluded = {path.resolve() for path in but}
    runs = [p for p in folder.glob("[0-9][0-9][0-9][0-9]_*.json") if p.resolve() not in excluded]
    return max(runs, key=lambda path: path.name, default=None)


def records_of(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a run by case; of another schema or broken: none, as they cannot be read."""
    try:
        benchmarks = json.loads(path.read_text("utf-8"))["benchmarks"]
        records = [b["extra_info"]["bitgate"] for b in benchmarks if "bitgate" in b["extra_info"]]
        return {r["case"]: r for r in records if r["schema"] == SCHEMA}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
