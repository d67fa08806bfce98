"""What a saved record must hold to be compared, as docs/schema.md describes it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Number = Annotated[float, Field(strict=True)]
Count = Annotated[int, Field(strict=True)]


def what_is_wrong(error: ValidationError) -> str:
    """The key, and what it should be: the deepest says the most, as of an interval that is no
    "exact" either, what is wrong in it."""
    worst = max(error.errors(), key=lambda one: len(one["loc"]))
    return f"{'.'.join(map(str, worst['loc']))}: {worst['msg']}"


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
    n: Count
    #: of the logarithms of several processes; runs before this was recorded lack it
    deviation: Number | None = None


class Value(_Read):
    """A metric of a record; its name may be one that this version does not know."""

    value: Number
    unit: str
    better: Literal["lower", "higher", "neither"]
    interval: Literal["exact"] | Bounds
    #: of `packed_layers` the classes that serve them, where the kernel's name does not say; of
    #: peaks of memory and of energy how they are known
    by: str = ""
    #: whether it follows from constants, and no instrument was read
    modelled: bool = False
    #: what theory predicts, where it does
    expected: Number | None = None

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
        return max(1, bounds.n) if bounds is not None and bounds.unit == "process" else 1

    @property
    def deviation(self) -> float | None:
        """The standard deviation over its processes, of logarithms, where that was recorded."""
        bounds = self.bounds
        known = None if bounds is None or self.processes < 2 else bounds.deviation
        return known if known is not None and math.isfinite(known) and known >= 0 else None


class Ran(_Read):
    """How a case was executed."""

    device: str
    dtype: str
    threads: int
    kernel: str
    compiled: bool = False


class Absent(_Read):
    """A case that a run was to measure and has no record of."""

    case: str
    model: str
    recipe: dict[str, Any]
    why: str
    #: whether it failed, and was not merely left out
    failed: bool


class Record(_Read):
    """What a run says of a case."""

    case: str
    model: str = ""
    #: `name`, `method` and what differs from the method's defaults
    recipe: dict[str, Any] = {}
    workload: dict[str, Any]
    execution: Ran
    metrics: dict[str, Value]
    outcome: str
    verdicts: list[dict[str, Any]] = []
    host: str = ""
    #: runs before this was recorded say what their machine was
    hardware: str | None = None
    #: of the machine; runs before this was recorded do not say
    cores: Count | None = None
    commit: str | None = None
    versions: dict[str, str] = {}
    #: that the case took, preparations included
    seconds: Number | None = None

    @property
    def kind(self) -> str:
        return self.case.partition("[")[0]

    @property
    def timed(self) -> bool:
        """Whether it is a case whose speed is what counts."""
        return "speedup" in self.metrics
