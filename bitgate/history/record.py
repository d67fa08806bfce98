"""What one case yields, and its summary in pytest-benchmark's `extra_info` (docs/schema.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bitgate.catalog import Case, Execution
from bitgate.gates.verdict import Verdict
from bitgate.history import origin
from bitgate.history.hardware import hardware_of
from bitgate.measure.calibration import cores
from bitgate.metric import Metric

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
#: from bad to good: a case is as good as its worst verdict
OUTCOMES = ("fail", "inconclusive", "expected-fail", "pass")


@dataclass(frozen=True)
class Result:
    """A case that was measured, or `note` says why it was not."""

    case: Case
    execution: Execution | None
    metrics: list[Metric]
    verdicts: list[Verdict]
    items: Mapping[str, np.ndarray] = field(default_factory=dict)
    looks: int = 0
    seconds: float = 0.0
    #: seconds that the case has waited for others on its host
    waited: float = 0.0
    #: the gates of every rule that met the case, also of those overridden
    met: tuple[str, ...] = ()
    note: str = ""
    #: whether it failed otherwise than by a verdict
    broken: bool = False
    #: seconds spent on getting ready, by what was done; part of `seconds`
    prepared: Mapping[str, float] = field(default_factory=dict)
    #: what measured it, where that was another process
    host: str = ""
    hardware: str = ""
    cores: int = 0

    @property
    def outcome(self) -> str:
        """The worst verdict; `recorded` where no rule applies."""
        if self.broken:
            return "fail"
        if self.execution is None:
            return "inconclusive"
        found = {verdict.outcome for verdict in self.verdicts}
        return next((outcome for outcome in OUTCOMES if outcome in found), "recorded")

    def record(self) -> dict[str, Any]:
        """JSON, at most a few KB."""
        assert self.execution is not None
        return {
            "schema": SCHEMA,
            "case": self.case.key,
            "cadence": self.case.cadence,
            "model": self.case.cell.model.name,
            "recipe": _recipe(self.case),
            "workload": self.case.workload.protocol(),
            "execution": asdict(self.execution),
            "host": self.host or origin.host(),
            "hardware": self.hardware or hardware_of(self.execution.device),
            "cores": self.cores or cores(),
            "metrics": {metric.name: metric.record() for metric in self.metrics},
            "verdicts": [
                {"metric": v.metric, "outcome": v.outcome, "gate": v.gate, "text": v.text}
                for v in self.verdicts
            ],
            "outcome": self.outcome,
            "looks": self.looks,
            "seconds": self.seconds,
            "prepared": dict(self.prepared),
            "waited": self.waited,
            "versions": origin.versions(),
            "commit": origin.commit(),
        }

    def absence(self) -> dict[str, Any]:
        """JSON of a case that has no record."""
        return {
            "case": self.case.key,
            "model": self.case.cell.model.name,
            "recipe": _recipe(self.case),
            "why": self.note,
            "failed": self.broken,
        }

    def parcel(self) -> dict[str, Any]:
        """All of it as JSON, the items too: what `of_parcel` takes."""
        return {
            "case": self.case.key,
            "record": None if self.execution is None else self.record(),
            "items": {name: values.tolist() for name, values in self.items.items()},
            "met": self.met,
            "note": self.note,
        }

    @classmethod
    def of_parcel(cls, case: Case, parcel: Mapping[str, Any]) -> Result:
        """The result of `case` that another process has measured."""
        import numpy as np

        record = parcel["record"]
        if record is None:
            return cls(case, None, [], [], note=parcel["note"])
        return cls(
            case,
            Execution(**record["execution"]),
            [Metric.of_record(name, metric) for name, metric in record["metrics"].items()],
            [Verdict(**verdict) for verdict in record["verdicts"]],
            {name: np.asarray(values) for name, values in parcel["items"].items()},
            record["looks"],
            record["seconds"],
            record["waited"],
            tuple(parcel["met"]),
            parcel["note"],
            prepared=record["prepared"],
            host=record["host"],
            hardware=record.get("hardware", ""),
            cores=record.get("cores", 0),
        )


def not_measured(case: Case, why: str) -> Result:
    """A case that the run had no room for, or did not come to."""
    return Result(case, None, [], [], note=why)


def broken(case: Case, why: str) -> Result:
    """A case that failed before anything could be judged."""
    return Result(case, None, [], [], note=why, broken=True)


def _recipe(case: Case) -> dict[str, Any]:
    recipe = case.cell.recipe
    keys = recipe.model_dump(mode="json", exclude_defaults=True)
    return {"method": recipe.method, **keys, "name": recipe.name}
