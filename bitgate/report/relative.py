"""One run as studies of quantization print it: what each recipe changes, relative to the base.

A column per cell, a row per quantity and batch size: `-54 %` of what the base takes. What the base
does not have, as time to quantize, is as it was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bitgate.history.cells import CellResults
from bitgate.history.schema import Record, Value
from bitgate.history.store import Reference
from bitgate.metric import number
from bitgate.report.comparison import escaped, headline

NONE = "–"


@dataclass(frozen=True)
class Quantity:
    """A metric of a kind of workload, and that of the base, or the unit in which it is absolute."""

    title: str
    kind: str
    metric: str
    base: str | None = None
    unit: str = ""
    scale: float = 1.0


QUANTITIES = (
    Quantity("perplexity", "perplexity", "perplexity", "base_perplexity"),
    Quantity("accuracy", "accuracy", "accuracy", "base_accuracy"),
    Quantity("size of the file", "quantize", "size_mib", "base_size_mib"),
    Quantity("peak memory", "memory", "peak_evaluate_mib", "base_peak_evaluate_mib"),
    Quantity("evaluation time", "energy", "evaluate_seconds", "base_evaluate_seconds"),
    Quantity("energy of evaluation", "energy", "evaluate_kwh", "base_evaluate_kwh"),
    Quantity("emissions of evaluation", "energy", "evaluate_kg_co2eq", "base_evaluate_kg_co2eq"),
    Quantity("quantization", "quantize", "quantize_seconds", unit="s"),
    Quantity("quantization, tracked", "energy", "quantize_seconds", unit="s"),
    Quantity("peak memory of quantization", "memory", "peak_quantize_mib", unit="MiB"),
    Quantity("energy of quantization", "energy", "quantize_kwh", unit="mWh", scale=1e6),
    Quantity("emissions of quantization", "energy", "quantize_kg_co2eq", unit="mg", scale=1e6),
)


@dataclass(frozen=True)
class RelativeTable:
    """The cells of a model, and what is said of each."""

    model: str
    recipes: Sequence[str]
    #: what a row is of, and a text for each recipe
    rows: Sequence[tuple[str, Sequence[str]]]
    notes: Sequence[str]


def tables(cells: Sequence[CellResults]) -> list[RelativeTable]:
    """One per model, in the run's order."""
    models = dict.fromkeys(cell.model for cell in cells)
    found = (_table(model, [c for c in cells if c.model == model]) for model in models)
    return [table for table in found if table.rows]


def _table(model: str, cells: Sequence[CellResults]) -> RelativeTable:
    rows: list[tuple[str, Sequence[str]]] = []
    for quantity in QUANTITIES:
        for which, name in _workloads(cells, quantity).items():
            texts = [_text(_record(cell, quantity, name), quantity) for cell in cells]
            if any(text != NONE for text in texts):
                rows.append((", ".join(filter(None, (quantity.title, which))), texts))
    by = {
        value.by: None
        for cell in cells
        for record in cell.of("energy")
        for name, value in record.metrics.items()
        if name.endswith("_kwh") and value.by
    }
    return RelativeTable(model, [cell.name for cell in cells], rows, [f"energy: {b}" for b in by])


def _workloads(cells: Sequence[CellResults], quantity: Quantity) -> dict[str, str | None]:
    """What tells a kind's workloads apart, the smallest batch first, and the name of each: its
    batch, `batch 32`, or its name where several have that batch. What quantizing takes does not
    depend on it, and is told once, of any."""
    if quantity.base is None:
        return {"": None}
    records = [record for cell in cells for record in cell.of(quantity.kind)]
    batches = {_name(record): _batch(record) for record in sorted(records, key=_batch)}
    alike = Counter(batches.values())
    return {
        f"batch {batch}" if batch and alike[batch] == 1 else name: name
        for name, batch in batches.items()
    }


def _batch(record: Record) -> int:
    batch = record.workload.get("batch")
    return batch if isinstance(batch, int) else 0


def _name(record: Record) -> str:
    return str(record.workload.get("name", ""))


def _record(cell: CellResults, quantity: Quantity, name: str | None) -> Record | None:
    return next(
        (
            record
            for record in cell.of(quantity.kind)
            if quantity.metric in record.metrics and name in (None, _name(record))
        ),
        None,
    )


def _text(record: Record | None, quantity: Quantity) -> str:
    if record is None:
        return NONE
    value = record.metrics[quantity.metric]
    mark = "≈ " if value.modelled else ""
    if quantity.base is None:
        return f"{mark}{number(quantity.scale * value.value, 3)} {quantity.unit}"
    base = record.metrics.get(quantity.base)
    return NONE if base is None else mark + change(value, base)


def change(value: Value, base: Value) -> str:
    """`-54.2 %`; of what is more than ten times as much, `x 25000`."""
    if not base.value or not math.isfinite(value.value / base.value):
        return NONE
    ratio = value.value / base.value
    if ratio >= 10:
        return f"× {number(ratio, 3)}"
    return f"{100 * (ratio - 1):+.1f} %"


def terminal(reference: Reference, found: Sequence[RelativeTable]) -> Iterator[Any]:
    """Tables and lines for rich."""
    from rich.table import Table
    from rich.text import Text

    yield Text(headline(reference))
    for part in found:
        table = Table(title=part.model, title_justify="left", title_style="bold", box=None)
        table.add_column("relative to the base", no_wrap=True)
        for recipe in part.recipes:
            table.add_column(Text(recipe), justify="right", no_wrap=True)
        for title, texts in part.rows:
            table.add_row(title, *map(Text, texts))
        yield table
        yield from (Text(note, "dim") for note in part.notes)


def markdown(reference: Reference, found: Sequence[RelativeTable]) -> str:
    """For a pull request or a page."""
    lines = [headline(reference), ""]
    for part in found:
        lines += [f"### {part.model}", "", _line(["relative to the base", *part.recipes])]
        lines.append(_line(["---", *["---:"] * len(part.recipes)]))
        lines += [_line([title, *texts]) for title, texts in part.rows]
        lines += ["", *(f"- {note}" for note in part.notes), ""]
    return "\n".join(lines).rstrip()


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, texts)) + " |"
