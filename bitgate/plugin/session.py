"""What the hooks and fixtures of one invocation share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from bitgate.catalog import Case, Catalog
from bitgate.gates.thresholds import Thresholds
from bitgate.plugin import options
from bitgate.plugin.budget import Budget
from bitgate.plugin.options import Options
from bitgate.plugin.quiet import Quiet

if TYPE_CHECKING:
    from bitgate.history.record import Result


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
    #: node ids in the order of collection
    order: dict[str, int] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)

    @cached_property
    def due(self) -> dict[str, Case]:
        """The cases of this cadence by key."""
        return {case.key: case for case in self.catalog.cases(self.options.cadence)}

    def in_order(self) -> list[Result]:
        """What was measured, as it was collected."""
        last = len(self.order)
        return [
            self.results[nodeid]
            for nodeid in sorted(self.results, key=lambda nodeid: self.order.get(nodeid, last))
        ]


SESSION = pytest.StashKey[Session]()
CASE = pytest.StashKey[Case]()
RESULT: pytest.StashKey[Result] = pytest.StashKey()


def session_of(config: pytest.Config) -> Session:
    """The session; a usage error where there is no matrix to measure."""
    if SESSION not in config.stash:
        wanted = options.read(config)
        raise pytest.UsageError(
            f"{wanted.catalog / 'matrix.toml'} is missing: it says which models meet which "
            "recipes; give the folder that has it with --catalog"
        )
    return config.stash[SESSION]
