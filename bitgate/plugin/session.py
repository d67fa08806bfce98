"""What the hooks and fixtures of one invocation share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pytest

from bitgate.catalog import Case, Catalog, EnergyWorkload, PhaseWorkload
from bitgate.catalog.energy import EnergySettings
from bitgate.gates.thresholds import Thresholds
from bitgate.history.record import Result, broken, not_measured
from bitgate.measure.calibration import Calibrations
from bitgate.plugin.budget import Budget
from bitgate.plugin.options import Options
from bitgate.plugin.placement import Job, Placement
from bitgate.plugin.quiet import Quiet


class InconclusiveWarning(UserWarning):
    """A gate could not be decided within its share of the budget."""


@dataclass
class Session:
    """What the hooks of one invocation share."""

    options: Options
    catalog: Catalog
    thresholds: Thresholds
    budget: Budget
    quiet: Quiet
    calibrations: Calibrations
    #: models that are due and whose shapes are known only when they are loaded
    unlocked: Sequence[str] = ()
    #: where the electricity comes from
    energy: EnergySettings = field(default_factory=EnergySettings)
    #: what was measured, by node id
    results: dict[str, Result] = field(default_factory=dict)
    #: why a test has nothing to show, by node id: the last line of its error, or of its skip
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    #: node ids in the order of collection
    order: dict[str, int] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)

    @cached_property
    def due(self) -> dict[str, Case]:
        """The cases of this cadence by key."""
        return {case.key: case for case in self.catalog.cases(self.options.cadence)}

    def in_order(self) -> list[Result]:
        """What was measured, as it was collected."""
        return [self.results[nodeid] for nodeid in self._sorted(self.results)]

    def all_in_order(self) -> list[Result]:
        """Also what was to be measured and was not, with the reason."""
        nodeids = {*self.order, *self.results, *self.failed, *self.skipped}
        return [
            result for nodeid in self._sorted(nodeids) if (result := self.told(nodeid)) is not None
        ]

    def _sorted(self, nodeids: Iterable[str]) -> list[str]:
        last = len(self.order)
        return sorted(nodeids, key=lambda nodeid: self.order.get(nodeid, last))

    def told(self, nodeid: str) -> Result | None:
        """What became of a test, if it is a case."""
        if nodeid in self.results:
            result = self.results[nodeid]
            if nodeid in self.failed and result.outcome in ("pass", "expected-fail", "recorded"):
                # its verdicts are good, but the test failed afterwards
                return replace(result, broken=True, note=self.failed[nodeid])
            return result
        case = self.case_of(nodeid)
        if case is None:
            return None
        if nodeid in self.failed:
            return broken(case, self.failed[nodeid])
        return not_measured(case, self.skipped.get(nodeid, "not measured: the run ended before it"))

    @cached_property
    def _by_id(self) -> dict[str, list[Case]]:
        found: dict[str, list[Case]] = {}
        for case in self.due.values():
            found.setdefault(case.id, []).append(case)
        return found

    def case_of(self, nodeid: str) -> Case | None:
        """The case of a test that another process may have run: by the id in brackets, and by the
        kind, which benchmarks have in their name."""
        path, _, inside = nodeid.partition("[")
        found = self._by_id.get(inside.removesuffix("]"), [])
        named = [case for case in found if case.kind in path]
        return next(iter(named or found), None)

    def place(self, nodeids: Sequence[str]) -> Placement:
        """Among workers, by model and by what each test cost before."""
        return Placement([self._known(nodeid) for nodeid in nodeids])

    def _known(self, nodeid: str) -> Job:
        case = self.case_of(nodeid)
        if case is None:
            return Job(cell=nodeid)
        timed = isinstance(case.workload, (PhaseWorkload, EnergyWorkload))
        return Job(case.cell.id, case.cell.model.name, timed, self.budget.recorded(case.key))


SESSION = pytest.StashKey[Session]()
CASE = pytest.StashKey[Case]()
RESULT: pytest.StashKey[Result] = pytest.StashKey()


def session_of(config: pytest.Config) -> Session:
    """The session, which there is wherever a case is."""
    return config.stash[SESSION]
