"""Bounds that follow from what was measured: the measured value and so many half-widths of its
interval, over all recorded runs of every case that a rule is for.

What is proposed passes for the runs that it is made of, as no bound lies within an interval.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bitgate.catalog import Case, Execution
from bitgate.gates.bounds import Key, NoBoundError, Observation, proposed
from bitgate.gates.rules import matching, resolve
from bitgate.gates.thresholds import Bound, Match, Thresholds, written
from bitgate.metric import SPECS


@dataclass(frozen=True)
class Proposal:
    """A bound and why; `was` is the one in the file, None if there is none."""

    gate: str
    metric: str
    key: Key
    bound: float
    reason: str
    was: float | None = None

    @property
    def looser(self) -> bool:
        if self.was is None:
            return False
        return self.bound < self.was if self.key == "min" else self.bound > self.was


@dataclass(frozen=True)
class NewGate:
    """A gate for metrics that no rule is for yet."""

    name: str
    match: Mapping[str, str | int | bool]
    bounds: Sequence[Proposal]


@dataclass(frozen=True)
class Proposals:
    """Changes of bounds in the file, gates to add, and what is not proposed, with the reason."""

    changes: list[Proposal] = field(default_factory=list)
    gates: list[NewGate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def propose(
    thresholds: Thresholds,
    cases: Collection[Case],
    observations: Iterable[Observation],
    kernels: Collection[str],
    *,
    margin: float = 3.0,
    needs: Collection[tuple[str, str]] = (),
) -> Proposals:
    """Bounds for every rule and every metric that was measured.

    `cases` are the whole matrix, `kernels` all names of kernels. A bound is only tightened, and a
    gate only added, where every case that it is for has been measured; `needs` are the gates and
    metrics whose bounds are not for measurements to decide. A metric with `better` neither has no
    bounds.
    """
    seen = list(observations)
    devices = {one.execution.fields()["device"] for one in seen}
    matrix = _Matrix(thresholds, cases, sorted(map(str, devices)), kernels)
    ruled: dict[tuple[str, str], list[Observation]] = {}
    unruled: dict[str, list[Observation]] = {}
    bounds: dict[tuple[str, str], Bound] = {}
    for one in seen:
        if one.metric.modelled:
            continue  # gates pass it over, so a bound would be none
        rule = resolve(matching(thresholds, one.case, one.execution)).get(one.metric.name)
        if rule is None:
            unruled.setdefault(one.metric.name, []).append(one)
        else:
            ruled.setdefault((rule.gate, rule.metric), []).append(one)
            bounds[rule.gate, rule.metric] = rule.bound
    proposals = Proposals()
    for (gate, metric), found in ruled.items():
        where = f'"{gate}" {metric}'
        if (gate, metric) in needs:
            proposals.notes.append(f"{where}: kept, as its comment calls it a need")
        elif bounds[gate, metric].expect is not None:
            proposals.notes.append(f"{where}: kept, as it is expected to fail")
        else:
            missing = matrix.unmeasured(found, seen, gate, metric)
            _change(proposals, gate, bounds[gate, metric], found, margin, missing)
    proposals.gates.extend(_new(proposals.notes, thresholds, matrix, unruled, seen, margin))
    return proposals


# --- existing rules ------------------------------------------------------------------------


def _change(
    proposals: Proposals,
    gate: str,
    bound: Bound,
    found: Sequence[Observation],
    margin: float,
    missing: Sequence[Case],
) -> None:
    metric = found[0].metric.name
    limits: dict[Key, float | None] = {"min": bound.min, "max": bound.max, "within": bound.within}
    for key, was in limits.items():
        if was is None:
            continue
        try:
            value, reason = proposed(found, key, margin)
        except NoBoundError as error:
            proposals.notes.append(f'"{gate}" {metric}: kept, {error}')
            continue
        proposal = Proposal(gate, metric, key, value, reason, was)
        if value == was:
            continue
        if missing and not proposal.looser:
            some = f"{missing[0].key}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
            proposals.notes.append(
                f'"{gate}" {metric}: {key} {written(was)} is kept though {written(value)} would '
                f"do for what was measured: it is also for {some}"
            )
            continue
        proposals.changes.append(proposal)


# --- new gates -----------------------------------------------------------------------------


def _new(
    notes: list[str],
    thresholds: Thresholds,
    matrix: _Matrix,
    unruled: Mapping[str, Sequence[Observation]],
    seen: Sequence[Observation],
    margin: float,
) -> Iterator[NewGate]:
    """One gate per cell, workload and device, with all metrics that have no rule there."""
    groups: dict[tuple[tuple[str, str | int | bool], ...], dict[str, list[Observation]]] = {}
    for metric, found in unruled.items():
        if SPECS[metric].better == "neither":
            continue
        for one in found:
            group = groups.setdefault(tuple(_match(one).items()), {})
            group.setdefault(metric, []).append(one)
    measured = {one.case.key for one in seen}
    taken = {gate.name for gate in thresholds.gates}
    for items, metrics in groups.items():
        match = dict(items)
        first = next(iter(metrics.values()))[0]
        name = _unused(f"{first.case.id} on {match['device']}", taken)
        bounds = []
        for metric, found in metrics.items():
            key: Key = "min" if SPECS[metric].better == "higher" else "max"
            if found[0].metric.interval is None and found[0].metric.expected is not None:
                key = "within"
            others, ruled = matrix.also(Match.model_validate(match), metric)
            unmeasured = [case.key for case in others if case.key not in measured]
            if ruled or unmeasured:
                why = (
                    f"it would override the rule for {ruled[0].key}"
                    if ruled
                    else (f"it would also be for {unmeasured[0]}, of which there is no run")
                )
                notes.append(f"{first.case.key} {metric}: no gate is proposed, {why}")
                continue
            try:
                value, reason = proposed(found, key, margin)
            except NoBoundError as error:
                notes.append(f"{first.case.key} {metric}: no gate is proposed, {error}")
                continue
            bounds.append(Proposal(name, metric, key, value, reason))
        if bounds:
            taken.add(name)
            yield NewGate(name, match, bounds)


def _match(one: Observation) -> dict[str, str | int | bool]:
    """What a gate for this cell and workload on this device says."""
    static = one.case.static_fields()
    fields = {name: static[name] for name in ("model", "recipe", "dataset", "phase", "batch")}
    match: dict[str, str | int | bool] = {k: v for k, v in fields.items() if v is not None}
    execution = one.execution.fields()
    match["device"] = execution["device"]
    if "phase" in match:
        match["compiled"] = execution["compiled"]
    return match


def _unused(name: str, taken: Collection[str]) -> str:
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name} ({count})"
    return free


class _Matrix:
    """Every case, as it could run on the devices that were measured on."""

    def __init__(
        self,
        thresholds: Thresholds,
        cases: Collection[Case],
        devices: Sequence[str],
        kernels: Collection[str],
    ) -> None:
        self._rules = {
            (case.key, execution.device, execution.kernel): (
                case,
                execution,
                {
                    m: rule.gate
                    for m, rule in resolve(matching(thresholds, case, execution)).items()
                },
            )
            for case in cases
            for execution in _executions(case, devices, kernels)
        }

    def unmeasured(
        self, found: Sequence[Observation], seen: Sequence[Observation], gate: str, metric: str
    ) -> list[Case]:
        """Cases for which this rule may hold on a device of `found`, and that were never seen
        there."""
        devices = {one.execution.fields()["device"] for one in found}
        known = {(one.case.key, one.execution.fields()["device"]) for one in seen}
        cases = {
            case.key: case
            for case, execution, gates in self._rules.values()
            if gates.get(metric) == gate
            and execution.device in devices
            and (case.key, execution.device) not in known
        }
        return list(cases.values())

    def also(self, match: Match, metric: str) -> tuple[list[Case], list[Case]]:
        """The cases with this metric that `match` accepts, and those of them that have a rule."""
        fitting = [
            (case, metric in gates)
            for case, execution, gates in self._rules.values()
            if case.kind in SPECS[metric].kinds
            and match.accepts({**case.static_fields(), **execution.fields()})
        ]
        return [case for case, _ in fitting], [case for case, ruled in fitting if ruled]


def _executions(
    case: Case, devices: Iterable[str], kernels: Collection[str]
) -> Iterator[Execution]:
    forced = case.cell.recipe.kernel
    compiled = bool(getattr(case.workload, "compiled", False))
    for device in devices:
        for kernel in kernels if forced == "auto" else (forced,):
            yield Execution(device, dtype="", threads=0, kernel=kernel, compiled=compiled)
