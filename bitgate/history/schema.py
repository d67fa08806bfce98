"""What a saved record must hold to be compared, as docs/schema.md describes it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(strict=True)]


class _Read(BaseModel):
    """What must be there; what else there is, a later version may have added."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Bounds(_Read):
    """An interval, as docs/schema.md has it."""

    low: Number
    high: Number
    level: Number
    method: str
    unit: str
    n: int


class Value(_Read):
    """A metric of a record; its name may be one that this version does not know."""

    value: Number
    unit: str
    better: Literal["lower", "higher", "neither"]
    interval: Literal["exact"] | Bounds

    @property
    def bounds(self) -> Bounds | None:
        return None if self.interval == "exact" else self.interval

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)

    @property
    def processes(self) -> int:
        """How many processes a speed is of."""
        bounds = self.bounds
        return bounds.n if bounds is not None and bounds.unit == "process" else 1


class Ran(_Read):
    """How a case was executed."""

    device: str
    dtype: str
    threads: int
    kernel: str
    compiled: bool = False


class Record(_Read):
    """What a run says of a case."""

    case: str
    workload: dict[str, Any]
    execution: Ran
    metrics: dict[str, Value]
    outcome: str
    verdicts: list[dict[str, Any]] = []
    host: str = ""
    #: runs before this was recorded say what their machine was
    hardware: str | None = None
    commit: str | None = None

    @property
    def kind(self) -> str:
        return self.case.partition("[")[0]

    @property
    def timed(self) -> bool:
        """Whether it is a case whose speed is what counts."""
        return "speedup" in self.metrics
