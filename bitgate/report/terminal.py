"""A run on the terminal: one line per cell, what was missed, what changed since the last run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitgate.catalog import Kind
from bitgate.history.record import OUTCOMES, Result
from bitgate.history.runs import Before
from bitgate.measure.processes import ASSUMED, UNKNOWN
from bitgate.metric import SPECS, Metric, decimals, number

MARKS = {
    "pass": ("✓ pass", "green"),
    "recorded": ("· recorded", "dim"),
    "expected-fail": ("✓ expected fail", "cyan"),
    "inconclusive": ("? inconclusive", "yellow"),
    "fail": ("✗ FAIL", "bold red"),
}


#: columns that the widest table takes
WHOLE = 145


def render(results: Sequence[Result], *, width: int, colour: bool) -> str:
    """The table of cells and the sentences behind every verdict that is not a pass."""
    console = Console(
        width=width,
        force_terminal=colour,
        no_color=not colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    with console.capture() as capture:
        for table in _tables(results, narrow=width < WHOLE):
            console.print(table)
        for line in _reasons(results):
            console.print(line)
    return capture.get()


def _tables(results: Sequence[Result], *, narrow: bool) -> Iterator[Table]:
    """Tables per model, one line per cell; figures are broken only where it is too narrow."""
    by_model: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        cell = result.case.cell
        by_model.setdefault(cell.model.name, {}).setdefault(cell.recipe.name, []).append(result)
    for (model, cells), (about, kinds) in itertools.product(by_model.items(), GROUPS.items()):
        shown = {name: some for name, found in cells.items() if (some := _of(found, kinds))}
        if not shown:
            continue
        columns = [c for c in COLUMNS if any(c.cells(found) for found in shown.values())]
        table = Table(
            title=f"{model}{about}",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        table.add_column("recipe", no_wrap=True)
        for column in columns:
            table.add_column(column.title, justify="right", overflow="fold", no_wrap=not narrow)
        table.add_column("verdict", no_wrap=True)
        for recipe, found in shown.items():
            table.add_row(recipe, *("\n".join(c.cells(found)) for c in columns), _worst(found))
        yield table


#: what is shown in one table, and what its title says of it beside the model
GROUPS: dict[str, tuple[Kind, ...]] = {
    "": ("quantize", "perplexity", "accuracy", "decode", "prefill"),
    ": tasks and summaries": ("task", "rouge"),
    ": fine-tuning": ("finetune",),
    ": peak memory": ("memory",),
    ": energy": ("energy",),
}


def _of(results: Iterable[Result], kinds: Iterable[Kind]) -> list[Result]:
    return [result for result in results if result.case.kind in kinds]


class _Column:
    """A metric of the table: how it is headed and written."""

    def __init__(self, title: str, metric: str, kind: str, write: Any) -> None:
        self.title = title
        self.metric = metric
        self.kind = kind
        self.write = write

    def cells(self, results: Iterable[Result]) -> list[str]:
        """One entry per workload that has this metric; several say which is which."""
        found = [
            (result, metric)
            for result in results
            if result.case.kind == self.kind
            for metric in result.metrics
            if metric.name == self.metric
        ]
        return [
            self.write(metric) + (f" {_which(result)}" if len(found) > 1 else "")
            for result, metric in found
        ]


def _which(result: Result) -> str:
    return result.case.workload.name


def _plus_minus(digits: int, scale: float = 1.0) -> Any:
    """`1.250 ± 0.010`: half the interval's width, as each measurement's asymmetry is small."""

    def write(metric: Metric) -> str:
        if not metric.finite:
            return str(metric.value)
        value, half = scale * metric.value, scale * (metric.high - metric.low) / 2
        if abs(value) >= 1000:
            return number(value)
        return f"{value:.{digits}f} ± {half:.{digits}f}"

    return write


def _energy(scale: float) -> Any:
    """Three digits; what no instrument has measured is marked."""

    def write(metric: Metric) -> str:
        return f"{'≈ ' if metric.modelled else ''}{number(scale * metric.value, 3)}"

    return write


COLUMNS = (
    _Column("MiB", "size_mib", "quantize", lambda m: decimals(m.value, 1)),
    _Column("quantize", "quantize_seconds", "quantize", lambda m: f"{decimals(m.value, 0)} s"),
    _Column("perplexity", "perplexity", "perplexity", lambda m: number(m.value)),
    _Column("ratio to base", "perplexity_ratio", "perplexity", _plus_minus(3)),
    _Column("KL, nat", "kl_divergence", "perplexity", _plus_minus(3)),
    _Column("same top-1, %", "top1_agreement", "perplexity", _plus_minus(1, 100)),
    _Column("accuracy, %", "accuracy", "accuracy", _plus_minus(1, 100)),
    _Column("to base, points", "accuracy_difference", "accuracy", _plus_minus(1, 100)),
    _Column("same class, %", "top1_agreement", "accuracy", _plus_minus(1, 100)),
    _Column("accuracy, %", "accuracy", "task", _plus_minus(1, 100)),
    _Column("to base, points", "accuracy_difference", "task", _plus_minus(1, 100)),
    _Column("ROUGE-L to base", "rougeL", "rouge", _plus_minus(2)),
    _Column("tuned, nat", "training_gain", "finetune", _plus_minus(3)),
    _Column("merged, %", "gain_kept", "finetune", _plus_minus(1, 100)),
    _Column("deployed, %", "deployed_gain", "finetune", _plus_minus(1, 100)),
    _Column("tuned ratio", "deployed_ratio", "finetune", _plus_minus(3)),
    _Column("evaluation ×", "evaluation_speedup", "accuracy", _plus_minus(2)),
    _Column("decode ×", "speedup", "decode", _plus_minus(2)),
    _Column("tok/s", "tokens_per_second", "decode", lambda m: f"{m.value:.1f}"),
    _Column("prefill ×", "speedup", "prefill", _plus_minus(2)),
    _Column("peak, MiB", "peak_evaluate_mib", "memory", lambda m: f"{m.value:.0f}"),
    _Column("of base", "peak_evaluate_ratio", "memory", lambda m: f"{100 * m.value:.0f} %"),
    _Column("quantizing, MiB", "peak_quantize_mib", "memory", lambda m: f"{m.value:.0f}"),
    _Column("quantizing, mWh", "quantize_kwh", "energy", _energy(1e6)),
    _Column("evaluating, mWh", "evaluate_kwh", "energy", _energy(1e6)),
    _Column("J/token", "joules_per_token", "energy", _energy(1)),
    _Column("J/item", "joules_per_item", "energy", _energy(1)),
    _Column("energy ×", "energy_ratio", "energy", _energy(1)),
    _Column("mg CO2eq", "evaluate_kg_co2eq", "energy", _energy(1e6)),
)


def _worst(results: Iterable[Result]) -> Text:
    outcomes = {result.outcome for result in results}
    mark, style = MARKS[next((o for o in OUTCOMES if o in outcomes), "recorded")]
    return Text(mark, style)


def _reasons(results: Iterable[Result]) -> Iterator[Text]:
    """What the verdicts that are not a pass say, the worst first."""
    lines: list[tuple[int, Text]] = []
    for result in results:
        if result.note:
            outcome = result.outcome
            lines.append((OUTCOMES.index(outcome), _line(outcome, result, result.note)))
        lines += [
            (OUTCOMES.index(verdict.outcome), _line(verdict.outcome, result, verdict.text))
            for verdict in result.verdicts
            if verdict.outcome != "pass"
        ]
    return (text for _, text in sorted(lines, key=lambda line: line[0]))


def _line(outcome: str, result: Result, why: str) -> Text:
    mark, style = MARKS[outcome]
    return Text.assemble((mark, style), f" {result.case.key}: {why}")


def sources_of_energy(results: Iterable[Result]) -> list[str]:
    """A line for each source that figures of energy have; modelled ones are marked with ≈."""
    found = {
        metric.by: "≈, " if metric.modelled else ""
        for result in results
        for metric in result.metrics
        if metric.name.endswith("_kwh")
    }
    return [f"energy: {mark}{by}" for by, mark in found.items()]


def uncalibrated(results: Iterable[Result]) -> list[str]:
    """One line if speeds were judged by a spread that nobody has measured on their hardware."""
    methods = (m.interval.method for r in results for m in r.metrics if m.interval is not None)
    if not any(UNKNOWN in method for method in methods):
        return []
    assumed = f"{100 * ASSUMED.ratio.deviation:g} %"
    return [f"speeds are assumed to differ by {assumed} between processes: see bitgate calibrate"]


def changes(results: Sequence[Result], before: Before) -> list[str]:
    """What is different from earlier runs: exact values at all, others beyond both intervals.

    Absolute times are left out, and cases that ran otherwise then: neither can be compared.
    """
    lines = [f"{run} holds no records of this version" for run in before.unreadable]
    if not before.records:
        return lines
    differing, compared, otherwise = [], 0, 0
    for result in results:
        old = before.records.get(result.case.key)
        if old is None or result.execution is None:
            continue
        if old["execution"] != asdict(result.execution):
            otherwise += 1
            continue
        for metric in result.metrics:
            was = old["metrics"].get(metric.name)
            if was is None or metric.spec.unit in NOT_COMPARABLE:
                continue
            compared += 1
            if _differs(metric, was):
                differing.append(f"  {result.case.key}: {_change(metric, was)}")
    runs = sorted(set(before.runs.values()))
    since = runs[0] if len(runs) == 1 else f"{len(runs)} runs, the last {runs[-1]}"
    head = f"since {since}: {len(differing)} of {compared} metrics changed beyond their intervals"
    new = sum(r.execution is not None and r.case.key not in before.records for r in results)
    head += f", {new} new cases" if new else ""
    head += f", {otherwise} cases ran otherwise (device, kernel, threads)" if otherwise else ""
    return [*lines, head, *differing]


NOT_COMPARABLE = ("s", "ms", "token/s")


def _differs(metric: Metric, was: Mapping[str, Any]) -> bool:
    if metric.interval is None or was["interval"] == "exact":
        return bool(metric.value != was["value"])
    if math.isnan(metric.value) or math.isnan(was["value"]):
        return math.isnan(metric.value) != math.isnan(was["value"])
    return bool(metric.low > was["interval"]["high"] or metric.high < was["interval"]["low"])


def _change(metric: Metric, was: Mapping[str, Any]) -> str:
    better = SPECS[metric.name].better
    up = metric.value > was["value"]
    word = "" if better == "neither" else " better" if up == (better == "higher") else " worse"
    relative = f" ({metric.value / was['value'] - 1:+.1%})" if was["value"] else ""
    return f"{metric.name} {number(was['value'])} -> {number(metric.value)}{relative}{word}"
