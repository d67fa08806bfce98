"""Times a real cell in many fresh processes, as `pytest bench --launches` does, and writes it down.

Eight pairs of steps in each: base and quantized model of a decode workload take turns.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from bitgate.catalog import Case, Cell, Execution, PhaseWorkload, load_entries
from bitgate.measure.launches import Launches, prepared
from bitgate.measure.processes import ASSUMED
from bitgate.quantize import recipe_types

ROOT = Path(__file__).parents[2]
#: four layers of Llama-3.2-1B's shape, packed to 4 bits: a launch takes seconds
CATALOG = ROOT / "tests" / "sensitivity" / "catalog"
MODEL, RECIPE = "llama-1b-4-layers", "hqq-w4g64-head4-rtn"
WORKLOAD = PhaseWorkload(kind="decode", name="b1-short", prompt=16, output=96, threads=1)
#: of the execution only that it is one thread on a CPU matters to what is computed from it
EXECUTION = Execution("cpu", "float32", 1, "cpu-int4")

SECONDS = ("base_seconds", "seconds", "base_cpu_seconds", "cpu_seconds")
COLUMNS = ("launch", "time", "pair", *SECONDS)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Recorded:
    """Seconds by name, each of shape (launches, pairs)."""

    seconds: dict[str, Array]

    def __len__(self) -> int:
        return len(self.seconds["seconds"])

    @property
    def pairs(self) -> int:
        return self.seconds["seconds"].shape[1]

    def log_ratios(self, clock: str) -> Array:
        """Each launch's median of the paired log ratio; shape (launches,)."""
        prefix = "cpu_" if clock == "CPU" else ""
        base, own = (self.seconds[f"{which}{prefix}seconds"] for which in ("base_", ""))
        return np.median(np.log(base / own), axis=1)


def case() -> Case:
    catalog = load_entries(CATALOG, recipe_types())
    return Case(Cell(catalog.models[MODEL], catalog.recipes[RECIPE]), WORKLOAD, "commit")


def record(path: Path, launches: int) -> None:
    """One row per pair into `path`, launch by launch: what was written stays if this is stopped.

    Raises:
        MeasureError: if a launch fails.
    """
    what = case()
    with TemporaryDirectory(prefix="bitgate-power-") as folder, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        job = prepared(what, "cpu", Path(folder))
        measurement = Launches(job, launches, ASSUMED, limit=launches, label=what.key)
        for number, batch in enumerate(measurement.batches()):
            now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
            for pair, *seconds in zip(*(batch.items[c] for c in COLUMNS[2:]), strict=True):
                writer.writerow([number, now, pair, *(f"{value:.6f}" for value in seconds)])
            file.flush()
            print(f"launch {number + 1} of {launches}", file=sys.stderr)


def read(path: Path) -> Recorded:
    """What `record` wrote; a last launch that is not complete is left out.

    Raises:
        ValueError: for a file that is none, or has fewer than 10 launches.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {*SECONDS, "launch"} <= rows[0].keys():
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}")
    by_launch: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_launch.setdefault(row["launch"], []).append(row)
    pairs = max(map(len, by_launch.values()))
    complete = [found for found in by_launch.values() if len(found) == pairs]
    if len(complete) < 10:
        raise ValueError(f"{path}: {len(complete)} launches, at least 10 are needed")
    return Recorded(
        {
            name: np.array([[float(row[name]) for row in found] for found in complete])
            for name in SECONDS
        }
    )
