"""One run as one table: a row per cell, what each method costs and what it keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitgate.history.cells import CellResults, front
from bitgate.history.saved import names
from bitgate.history.schema import Record, Value
from bitgate.history.store import Reference
from bitgate.metric import decimals, number
from bitgate.report.comparison import escaped, finite, headline, run_json, value_json
from bitgate.report.terminal import MARKS

SKIPPED = ("– skipped", "yellow")
FRONT = "◆"


@dataclass(frozen=True)
class Column:
    """A figure of each cell; `metric` names it for sorting, `more` says whether more is better."""

    title: str
    metric: str
    more: bool
    take: Callable[[CellResults], Value | float | None]
    write: Callable[[Value | float], str]

    def value(self, cell: CellResults) -> float | None:
        """The number itself; None where it was not measured, or is none."""
        taken = self.take(cell)
        value = taken.value if isinstance(taken, Value) else taken
        return value if value is not None and math.isfinite(value) else None

    def text(self, cell: CellResults) -> str:
        taken = self.take(cell)
        return "–" if taken is None else self.write(taken)

    def best(self, cells: Sequence[CellResults]) -> float | None:
        """The best number, where there are several to choose from."""
        values = [value for cell in cells if (value := self.value(cell)) is not None]
        if len(values) < 2:
            return None
        return max(values) if self.more else min(values)


@dataclass(frozen=True)
class ModelTable:
    """The cells of a model, sorted, and what is said of them."""

    model: str
    cells: Sequence[CellResults]
    columns: Sequence[Column]
    #: which of them are on the front of size and perplexity ratio
    on_front: Sequence[bool]
    #: what the figures of a speed are relative to
    notes: Sequence[str]


def tables(cells: Sequence[CellResults], sort: str = "size_mib") -> list[ModelTable]:
    """One per model, in the run's order; rows the best first, those without the figure last."""
    models = dict.fromkeys(cell.model for cell in cells)
    return [
        _table(model, [cell for cell in cells if cell.model == model], sort) for model in models
    ]


def _table(model: str, cells: list[CellResults], sort: str) -> ModelTable:
    columns = _columns(cells)
    by = next((column for column in columns if column.metric == sort), None)

    def place(cell: CellResults) -> tuple[bool, float, str]:
        value = None if by is None else by.value(cell)
        if by is None or value is None:
            return (sort != "recipe", 0.0, cell.name)
        return (False, -value if by.more else value, cell.name)

    ordered = sorted(cells, key=place)
    size, ratio = (
        next((c for c in columns if c.metric == metric), None)
        for metric in ("size_mib", "perplexity_ratio")
    )

    def point(cell: CellResults) -> tuple[float, float]:
        x, y = (None if c is None else c.value(cell) for c in (size, ratio))
        return (math.nan if x is None else x, math.nan if y is None else y)

    on_front = front(point(cell) for cell in cells)
    notes = []
    if len(on_front) > 1 and ratio is not None:
        notes.append(f"{FRONT} no other is smaller and has a lower {ratio.title}")
    if any(column.metric == "bits_per_weight" for column in columns):
        notes.append("bits/weight: of the whole file, with all that the recipe leaves as it is")
    notes += _bases(cells)
    return ModelTable(model, ordered, columns, [point(c) in on_front for c in ordered], notes)


# --- columns -------------------------------------------------------------------------------


def _columns(cells: Sequence[CellResults]) -> list[Column]:
    """Those that any of the cells has."""
    texts = _workloads(cells, "perplexity")
    found = [
        Column("bits/weight", "bits_per_weight", False, lambda c: c.bits_per_weight, _fixed(2)),
        Column("MiB", "size_mib", False, lambda c: c.exact("size_mib"), _fixed(1)),
        Column("of base", "relative_size", False, lambda c: c.relative_size, _percent),
        *(
            _measured("perplexity", text, f"ratio {text[0]}", "perplexity_ratio", _plus_minus(3))
            for text in texts
        ),
    ]
    for text in texts[:1]:  # the others would say the same again
        found += [
            _measured("perplexity", text, "KL nat", "kl_divergence", _plus_minus(4)),
            _measured("perplexity", text, "top-1 %", "top1_agreement", _plus_minus(1, 100), True),
        ]
    found += [
        _measured("decode", phase, f"decode × {phase[0]}", "speedup", _plus_minus(2), True)
        for phase in _workloads(cells, "decode")
    ]
    found += [
        Column("memory MiB", "memory_mib", False, lambda c: c.exact("memory_mib"), _fixed(1)),
        Column(
            "quantize s",
            "quantize_seconds",
            False,
            lambda c: c.exact("quantize_seconds"),
            _fixed(0),
        ),
    ]
    return [column for column in found if any(column.take(cell) is not None for cell in cells)]


def _workloads(cells: Sequence[CellResults], kind: str) -> list[tuple[str, int | None]]:
    """Names, and the threads of timed ones, of a kind's workloads: those of most cells first."""
    counted: dict[tuple[str, int | None], int] = {}
    for cell in cells:
        for record in cell.of(kind):
            key = _workload(record)
            counted[key] = counted.get(key, 0) + 1
    return sorted(counted, key=lambda key: -counted[key])


def _workload(record: Record) -> tuple[str, int | None]:
    return str(record.workload.get("name", "")), record.execution.threads if record.timed else None


def _measured(
    kind: str,
    workload: tuple[str, int | None],
    title: str,
    metric: str,
    write: Callable[[Value | float], str],
    more: bool = False,
) -> Column:
    def take(cell: CellResults) -> Value | None:
        records = (r for r in cell.of(kind) if _workload(r) == workload and metric in r.metrics)
        record = next(records, None)
        return None if record is None else record.metrics[metric]

    return Column(title, metric, more, take, write)


def _bases(cells: Sequence[CellResults]) -> list[str]:
    """`decode × b1: over the base in float32, eager, 1 thread on cpu`."""
    said: dict[str, None] = {}
    for cell in cells:
        for record in cell.of("decode"):
            ran = record.execution
            how = "compiled" if ran.compiled else "eager"
            threads = f", {ran.threads} thread{'s' if ran.threads > 1 else ''}"
            said[
                f"decode × {_workload(record)[0]}: over the base in {ran.dtype}, {how}"
                f"{threads if cell.device == 'cpu' else ''} on {cell.device}"
            ] = None
    return list(said)


def _number(taken: Value | float) -> float:
    return taken.value if isinstance(taken, Value) else taken


def _fixed(digits: int) -> Callable[[Value | float], str]:
    def write(taken: Value | float) -> str:
        return decimals(_number(taken), digits)

    return write


def _percent(taken: Value | float) -> str:
    return f"{100 * _number(taken):.0f} %"


def _plus_minus(digits: int, scale: float = 1.0) -> Callable[[Value | float], str]:
    """`1.250 ± 0.010`, half the interval's width; of large numbers four digits."""

    def write(taken: Value | float) -> str:
        value = scale * _number(taken)
        bounds = taken.bounds if isinstance(taken, Value) else None
        if not math.isfinite(value) or abs(value) >= 1000:
            return number(value)
        if bounds is None:
            return f"{value:.{digits}f}"
        return f"{value:.{digits}f} ± {scale * (bounds.high - bounds.low) / 2:.{digits}f}"

    return write


# --- what people read ----------------------------------------------------------------------


#: figures, and what else a row has, in the order in which a narrow terminal goes without
LEAST = (
    "memory_mib",
    "quantize_seconds",
    "kl_divergence",
    "method",
    "relative_size",
    "top1_agreement",
    "kernel",
    "bits_per_weight",
)
NUMBERED = "right"


@dataclass(frozen=True)
class _Shown:
    """A column as it is printed: what each row has, and whether that is the best."""

    metric: str
    title: str
    texts: Sequence[tuple[str, bool]]
    justify: Any = "left"

    @property
    def heading(self) -> str:
        """In two lines, if it is more than a word."""
        return "\n".join(self.title.split(" ", 1))

    @property
    def width(self) -> int:
        lines = [*self.heading.splitlines(), *(text for text, _ in self.texts)]
        return max(map(len, lines))


def _shown(table: ModelTable) -> list[_Shown]:
    """All columns but the verdict's, in order."""
    cells = table.cells

    def plain(texts: Iterator[str]) -> list[tuple[str, bool]]:
        return [(text, False) for text in texts]

    marks = (FRONT if on_front else " " for on_front in table.on_front)
    recipes = (f"{mark} {cell.name}" for mark, cell in zip(marks, cells, strict=True))
    found = [
        _Shown("recipe", "recipe", plain(recipes)),
        _Shown("method", "method", plain(cell.method for cell in cells)),
        _Shown("kernel", "kernel", plain(_kernel(cell, cells) for cell in cells)),
    ]
    for column in table.columns:
        top = column.best(cells)
        texts = [(column.text(c), top is not None and column.value(c) == top) for c in cells]
        found.append(_Shown(column.metric, column.title, texts, NUMBERED))
    return found


def _fitting(shown: Sequence[_Shown], width: int) -> tuple[list[_Shown], list[str]]:
    """As many of the columns as fit, and the titles of those left out."""
    kept, gone = list(shown), list[str]()
    space = width - GAP - max(len(mark) for mark, _ in (*MARKS.values(), SKIPPED))
    for metric in LEAST:
        if sum(column.width + GAP for column in kept) <= space:
            break
        gone += [column.title for column in kept if column.metric == metric]
        kept = [column for column in kept if column.metric != metric]
    return kept, gone


GAP = 2  #: between columns


def _mark(cell: CellResults) -> tuple[str, str]:
    return MARKS.get(cell.outcome, SKIPPED)


def _kernel(cell: CellResults, cells: Sequence[CellResults]) -> str:
    """With the classes of its layers, where it is a library that chooses them, and with the device,
    where there are several."""
    devices = {other.device for other in cells if other.device}
    kernel = " ".join(filter(None, (cell.kernel, cell.layer_classes)))
    return f"{kernel} on {cell.device}" if len(devices) > 1 and kernel else kernel


def reasons(cells: Sequence[CellResults]) -> list[tuple[str, str, str]]:
    """Mark, cases and why, of all that failed, stayed undecided or was not measured; those of one
    reason together."""
    found: dict[tuple[str, str], list[str]] = {}

    def say(mark: str, why: str, case: str) -> None:
        cases = found.setdefault((mark, why), [])
        if case not in cases:
            cases.append(case)

    for outcome in ("fail", "inconclusive"):
        for cell in cells:
            if outcome == "fail":
                for case, why in cell.broken.items():
                    say("fail", why, case)
            for record in cell.records:
                for verdict in record.verdicts:
                    if verdict.get("outcome") == outcome:
                        say(outcome, str(verdict.get("text", outcome)), record.case)
            for absent in cell.absent:
                if absent.failed == (outcome == "fail"):
                    say("fail" if absent.failed else "skipped", absent.why, absent.case)
    return [(mark, names(cases), why) for (mark, why), cases in found.items()]


def terminal(reference: Reference, found: Sequence[ModelTable], width: int) -> Iterator[Any]:
    """Tables and lines for rich; columns that have no room are left out, and named."""
    from rich.table import Table
    from rich.text import Text

    yield Text(headline(reference))
    for part in found:
        shown, gone = _fitting(_shown(part), width)
        table = Table(
            title=part.model,
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, GAP, 0, 0),
        )
        for column in shown:
            table.add_column(Text(column.heading), justify=column.justify, no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for cell, texts in zip(
            part.cells, zip(*(c.texts for c in shown), strict=True), strict=True
        ):
            row = (Text(text, "bold" if best else "") for text, best in texts)
            table.add_row(*row, Text(*_mark(cell)))
        yield table
        left_out = (
            [f"no room for {', '.join(gone)}: widen the terminal, or --output"] if gone else []
        )
        yield from (Text(note, "dim") for note in (*part.notes, *left_out))
    for outcome, cases, why in reasons([cell for part in found for cell in part.cells]):
        mark, style = MARKS.get(outcome, SKIPPED)
        yield Text.assemble((mark, style), f" {cases}: {why}")


def markdown(reference: Reference, found: Sequence[ModelTable]) -> str:
    """For a pull request or a page."""
    lines = [headline(reference), ""]
    for part in found:
        shown = _shown(part)
        rule = ["---:" if column.justify == NUMBERED else "---" for column in shown]
        lines += [f"### {part.model}", ""]
        lines += [_line([*(column.title for column in shown), "verdict"]), _line([*rule, "---"])]
        for cell, texts in zip(
            part.cells, zip(*(c.texts for c in shown), strict=True), strict=True
        ):
            row = (f"**{text}**" if best else text.strip() for text, best in texts)
            lines.append(_line([*row, _mark(cell)[0]]))
        lines += ["", *(f"- {note}" for note in part.notes), ""]
    for outcome, cases, why in reasons([cell for part in found for cell in part.cells]):
        lines.append(escaped(f"- {MARKS.get(outcome, SKIPPED)[0]} {cases}: {why}"))
    return "\n".join(lines).rstrip()


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, texts)) + " |"


def as_json(reference: Reference, found: Sequence[ModelTable]) -> str:
    """docs/history.md describes it. What is not finite is null, as JSON has no such numbers."""
    models = [
        {
            "model": part.model,
            "cells": [
                _cell_json(cell, on_front)
                for cell, on_front in zip(part.cells, part.on_front, strict=True)
            ],
        }
        for part in found
    ]
    content = {"schema": 1, "run": run_json(reference), "models": models}
    return json.dumps(content, indent=2, allow_nan=False)


def _cell_json(cell: CellResults, on_front: bool) -> Mapping[str, Any]:
    return {
        "recipe": dict(cell.recipe),
        "device": cell.device or None,
        "kernel": cell.kernel or None,
        "dtype": cell.dtype or None,
        "bits_per_weight": finite(cell.bits_per_weight),
        "relative_size": finite(cell.relative_size),
        "front": on_front,
        "verdict": cell.outcome,
        "cases": [
            {
                "case": record.case,
                "workload": record.workload,
                "execution": record.execution.model_dump(),
                "outcome": record.outcome,
                "metrics": {name: value_json(value) for name, value in record.metrics.items()},
                "verdicts": record.verdicts,
            }
            for record in cell.records
        ],
        "absent": [absent.model_dump(exclude={"model", "recipe"}) for absent in cell.absent],
    }
