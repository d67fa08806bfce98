"""What all saved runs hold together: every metric of every case, run after run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from bitgate.catalog import Execution
from bitgate.metric import Metric


@dataclass(frozen=True, slots=True)
class Run:
    """One file that pytest-benchmark has saved."""

    path: Path
    number: int | None  #: counted by pytest-benchmark, folder by folder
    time: datetime  #: in UTC

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True, slots=True)
class Measured:
    """One case in one run: what was measured, where and how."""

    run: Run
    case: str
    commit: str | None  #: `+` appended if the checkout had changes
    model: str
    recipe: str
    method: str
    bits: int | None
    group_size: int | None
    workload: str  #: kind and name: `decode b1`
    protocol: str  #: the workload's definition, to tell one from another of the same name
    execution: Execution
    host: str
    hardware: str
    versions: Mapping[str, str]

    @property
    def device(self) -> str:
        """Without its number: a worker takes whichever is free."""
        return self.execution.device.split(":")[0]

    @property
    def machine(self) -> tuple[str, str]:
        return self.host, self.hardware


@dataclass(frozen=True, slots=True)
class Point:
    """A metric in a run. `unit` and `better` are as recorded, `outcome` is the rule's, if any."""

    of: Measured
    metric: Metric
    unit: str
    better: str
    outcome: str

    @property
    def exact(self) -> bool:
        return self.metric.interval is None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or some cases in it, that was left out."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class History:
    """Points in the order in which they were measured."""

    points: list[Point] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def only(self, pattern: str | None = None, metrics: Collection[str] = ()) -> History:
        """The points of cases that fit a pattern (see `fits`), and of these metrics."""
        points = [
            point
            for point in self.points
            if (pattern is None or fits(point.of.case, pattern))
            and (not metrics or point.metric.name in metrics)
        ]
        return History(points, self.runs, self.skipped)


def fits(case: str, pattern: str) -> bool:
    """Whether a case is meant: its id or key, a glob of either, or any part of its key."""
    identity = case.partition("[")[2].removesuffix("]") or case
    return (
        pattern in case
        or fnmatchcase(identity, pattern)
        # in a key the brackets are no character class
        or fnmatchcase(case, pattern.replace("[", "[[]"))
    )
