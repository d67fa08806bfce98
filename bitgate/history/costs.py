"""How long each case took: as recorded in costs.toml, and in saved runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bitgate.catalog import CatalogError, read_toml
from bitgate.history.saved import SavedRun

FILE = "costs.toml"


def read_costs(path: Path) -> dict[str, float]:
    """Seconds by case, from a file of one table, `[seconds]`; none if there is no such file.

    Raises:
        CatalogError: if it is another file.
    """
    tables = read_toml(path)
    if tables.keys() - {"seconds"}:
        raise CatalogError(f"{path}: expected one table, [seconds]")
    costs = tables.get("seconds", {})
    for key, value in costs.items():
        if not isinstance(value, (int, float)) or value < 0:
            raise CatalogError(f"{path}: seconds.{key}: expected a number of seconds")
    return {key: float(value) for key, value in costs.items()}


def seconds_of_cells(
    cells: Mapping[str, tuple[str, str]], costs: Mapping[str, float], runs: Iterable[SavedRun]
) -> dict[tuple[str, str], float]:
    """Seconds of all cases of a cell together, by model and recipe: of each case those of the first
    run that has it, or else as recorded. `cells` says which cell a recorded case is of."""
    by_case: dict[str, tuple[tuple[str, str], float]] = {}
    for run in runs:
        for case, (record, *_) in run.records.items():
            name = record.recipe.get("name")
            if record.seconds is not None and isinstance(name, str):
                by_case.setdefault(case, ((record.model, name), record.seconds))
    for case, seconds in costs.items():
        if case in cells:
            by_case.setdefault(case, (cells[case], seconds))
    found: dict[tuple[str, str], float] = {}
    for cell, seconds in by_case.values():
        found[cell] = found.get(cell, 0.0) + seconds
    return found
