"""Which rule of `thresholds.toml` holds for which metric of a case that runs somewhere."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bitgate.catalog import Case, Execution
from bitgate.gates.thresholds import Bound, Thresholds
from bitgate.metric import SPECS


@dataclass(frozen=True)
class Rule:
    """One bound on one metric, and the gate that it comes from."""

    metric: str
    gate: str
    file: str
    bound: Bound

    @property
    def source(self) -> str:
        """`[thresholds.toml rule "hqq w4"]`."""
        return f'[{self.file} rule "{self.gate}"]'


@dataclass(frozen=True)
class Row:
    """A line of an explanation: a rule that matches, and whether it is the one that holds."""

    metric: str
    gate: str
    bound: str
    wins: bool


def matching(thresholds: Thresholds, case: Case, execution: Execution) -> list[Rule]:
    """Every rule that matches, in the order of the file; only metrics that the case yields."""
    fields = {**case.static_fields(), **execution.fields()}
    return [
        Rule(metric, gate.name, thresholds.file, bound)
        for gate in thresholds.gates
        if gate.match.accepts(fields)
        for metric, bound in gate.require.items()
        if case.kind in SPECS[metric].kinds
    ]


def resolve(rules: list[Rule]) -> dict[str, Rule]:
    """For each metric the rule that holds: the last one that matches."""
    return {rule.metric: rule for rule in rules}


def explain(rules: list[Rule]) -> list[Row]:
    """All rules that match, metric by metric in the order of the file, and which of them wins.

    For a table; within a metric a later row overrides those before it.
    """
    winners = resolve(rules)
    return [
        Row(metric, rule.gate, str(rule.bound), wins=rule is winner)
        for metric, winner in winners.items()
        for rule in rules
        if rule.metric == metric
    ]


def unmatched(thresholds: Thresholds, met: Collection[str]) -> list[str]:
    """The gates that met no case of a run, in the order of the file.

    `met` names the gates of all `matching` rules of the run's cases, also those overridden.
    """
    return [gate.name for gate in thresholds.gates if gate.name not in met]
