"""What the hooks and fixtures of one invocation share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import pytest

from bitgate.catalog import Case, Catalog
from bitgate.gates.thresholds import Thresholds
from bitgate.history.record import Result, broken, not_measured
from bitgate.plugin.budget import Budget
from bitgate.plugin.options import Options
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
            result for nodeid in self._sorted(nodeids) if (result := self._told(nodeid)) is not None
        ]

    def _sorted(self, nodeids: Iterable[str]) -> list[str]:
        last = len(self.order)
        return sorted(nodeids, key=lambda nodeid: self.order.get(nodeid, last))

    def _told(self, nodeid: str) -> Result | None:
        if nodeid in self.results:
            return self.results[nodeid]
        case = self.case_of(nodeid)
        if case is None:
            return None
        if nodeid in self.failed:
            return broken(case, self.failed[nodeid])
        return not_measured(case, self.skipped.get(nodeid, "not measured: the run ended before it"))

    def case_of(self, nodeid: str) -> Case | None:
        """The case of a test that another process may have run: by the id in brackets, and by the
        kind, which benchmarks have in their name."""
        path, _, inside = nodeid.partition("[")
        found = [case for case in self.due.values() if f"{case.id}]" == inside]
        named = [case for case in found if case.kind in path]
        return next(iter(named or found), None)


SESSION = pytest.StashKey[Session]()
CASE = pytest.StashKey[Case]()
RESULT: pytest.StashKey[Result] = pytest.StashKey()


def session_of(config: pytest.Config) -> Session:
    """The session, which there is wherever a case is."""
    return config.stash[SESSION]
