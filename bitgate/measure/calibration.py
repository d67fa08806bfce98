"""What `bitgate calibrate` has measured: how much processes differ on which hardware.

It is data, not cache: the user's own file lies in the user's data directory, and a project carries
one for its runners, `calibration.toml` beside its matrix, which wins where both know something.
Hosts have no part in the key, as runners come and go; the one that measured is noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bitgate.catalog import CatalogError, Entry, Execution, PhaseWorkload, nearest, parse, read_toml
from bitgate.measure.processes import ASSUMED, Between, Spread, deviation_over
from bitgate.measure.speed import CPU_COLUMNS, has_cpu_clock

if TYPE_CHECKING:
    from bitgate.measure.measurement import Items

FILE = "calibration.toml"
ENVIRONMENT_VARIABLE = "BITGATE_DATA"
LEAST = 3  #: launches that make a calibration: two tell next to nothing about a spread

#: what is calibrated unless something else is asked for: two layers of the shape that the speed
#: gate has its home on, so that a launch takes seconds
MODEL, RECIPE = "llama-3.2-1b-2-layers", "hqq-w4g64-head4-rtn"
WORKLOAD = PhaseWorkload(kind="decode", name="calibration", prompt=32, output=48, threads=1)
GENERAL = f"decode[{MODEL}-{RECIPE}-{WORKLOAD.name}]"  #: its case; holds for any that has no own

Deviation = Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]


class Calibration(Entry):
    """A `[[calibration]]` table: deviations of logarithms over the launches of one case."""

    hardware: str = Field(description="name of the processor, or of the accelerator")
    cores: int = Field(gt=0)
    device: Literal["cpu", "cuda"]
    threads: int = Field(gt=0)
    case: str
    ratio: Deviation
    seconds: Deviation
    cpu_ratio: Deviation | None = Field(None, description="by the CPU clock; one thread on a CPU")
    launches: int = Field(ge=LEAST)
    date: date
    host: str

    @property
    def key(self) -> tuple[str, int, str, int, str]:
        return self.hardware, self.cores, self.device, self.threads, self.case

    @property
    def spread(self) -> Spread:
        source = f"calibrated on {self.date}, {self.launches} launches"
        return Spread(
            Between(self.ratio, self.launches, source),
            Between(self.seconds, self.launches, source),
            None if self.cpu_ratio is None else Between(self.cpu_ratio, self.launches, source),
        )


@dataclass(frozen=True)
class Calibrations:
    """All that is known, by key."""

    entries: dict[tuple[str, int, str, int, str], Calibration]

    @classmethod
    def read(cls, *paths: Path) -> Calibrations:
        """Of files that need not be there; a later one wins.

        Raises:
            CatalogError: naming file and key.
        """
        return cls({entry.key: entry for path in paths for entry in _entries(path)})

    def spread(self, execution: Execution, case: str) -> Spread:
        """For a case that runs like this on this hardware: its own calibration, or else the general
        one of the hardware, or else what is assumed."""
        if not self.entries:
            return ASSUMED
        device = execution.device.split(":")[0]
        here = (hardware(execution.device), cores(), device, execution.threads)
        found = self.entries.get((*here, case)) or self.entries.get((*here, GENERAL))
        return found.spread if found else ASSUMED


def _entries(path: Path) -> Iterator[Calibration]:
    tables = read_toml(path)
    for key in tables:
        if key != "calibration":
            raise CatalogError(f"{path}: {key}: unknown table; {nearest(key, ['calibration'])}")
    entries = tables.get("calibration", [])
    if not isinstance(entries, list):
        raise CatalogError(f"{path}: calibration: expected [[calibration]] tables")
    for number, data in enumerate(entries, 1):
        yield parse(Calibration, data, f"{path}: [[calibration]] number {number}")


def summed_up(case: str, execution: Execution, items: Items, host: str) -> Calibration:
    """What the observations of several launches say; of both models' absolute times the one that
    differs more."""
    import numpy as np

    base, own, tokens = (
        np.asarray(items[key], float) for key in ("base_seconds", "seconds", "tokens")
    )
    ratio, *seconds = (
        deviation_over(np.log(values), items["launch"])
        for values in (base / own, own / tokens, base / tokens)
    )
    cpu_ratio = None
    if has_cpu_clock(execution, items):
        base_cpu, cpu = (np.asarray(items[key], float) for key in CPU_COLUMNS)
        cpu_ratio = deviation_over(np.log(base_cpu / cpu), items["launch"])
    return Calibration(
        hardware=hardware(execution.device),
        cores=cores(),
        device="cuda" if execution.device.startswith("cuda") else "cpu",
        threads=execution.threads,
        case=case,
        ratio=ratio,
        seconds=max(seconds),
        cpu_ratio=cpu_ratio,
        launches=len(np.unique(items["launch"])),
        date=date.today(),
        host=host,
    )


def keep(path: Path, new: Calibration) -> None:
    """Write `new` into the file, in place of what it knew under the same key."""
    known = Calibrations.read(path).entries | {new.key: new}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(_written(known.values()), "utf-8")
    partial.replace(path)


def _written(entries: Iterable[Calibration]) -> str:
    lines = [
        "# How much processes differ, as standard deviations of logarithms (0.05 is 5 %): of the",
        "# paired ratio and of absolute times. Written by `bitgate calibrate`.",
    ]
    for entry in entries:
        lines += ["", "[[calibration]]"]
        for key, value in entry:
            if value is None:
                continue
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value
            lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


def user_file() -> Path:
    """In `BITGATE_DATA`, or this platform's data directory of the user."""
    import platformdirs

    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    folder = Path(chosen).expanduser() if chosen else platformdirs.user_data_path("bitgate")
    return folder.absolute() / FILE


@cache
def hardware(device: str) -> str:
    """What a device is called by whoever made it."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    import cpuinfo

    return str(cpuinfo.get_cpu_info().get("brand_raw") or "unknown processor")


def cores() -> int:
    """Logical ones, of the whole machine."""
    return os.cpu_count() or 1
