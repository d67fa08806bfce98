"""The cells of a run as points of a picture: one metric against another, and the front of both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bitgate.catalog import nearest
from bitgate.history.cells import CellResults, front
from bitgate.history.schema import Record, Value
from bitgate.metric import SPECS
from bitgate.report.scatter import Axis, Point, scatter

#: metrics that are shares, which people read in percent
SHARES = {name for name in SPECS if name.endswith(("accuracy", "agreement", "macro_f1"))}


class PlotError(ValueError):
    """Nothing can be drawn; the message says why."""


def ablation(
    cells: Sequence[CellResults],
    x: str,
    y: str,
    title: str | None = None,
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> tuple[str, list[str]]:
    """An SVG of the cells by two metrics, and the names of those that lack one of them.

    Where several workloads have a metric, it is that of most cells. The front is of cells that no
    other is at least as good as in both.

    Raises:
        PlotError: if a metric does not exist, no cell has both, or one is not above 0 on a
            logarithmic axis.
    """
    for option, metric in (("x", x), ("y", y)):
        if metric not in SPECS:
            raise PlotError(f"--{option}: no metric is called {metric!r}; {nearest(metric, SPECS)}")
    workloads = {metric: _workload(cells, metric) for metric in (x, y)}
    found = [(c, _value(c, x, workloads[x]), _value(c, y, workloads[y])) for c in cells]
    whole = [(c, a, b) for c, a, b in found if a and b and a.finite and b.finite]
    if not whole:
        there = sorted({name for c in cells for one in c.records for name in one.metrics})
        raise PlotError(
            f"no cell of it has both {x} and {y}; its cells have {', '.join(there) or 'no metric'}"
        )
    ends = {x: [_ends(a) for _, a, _ in whole], y: [_ends(b) for _, _, b in whole]}
    for metric, logarithmic in ((x, log_x), (y, log_y)):
        if logarithmic and min(low for low, _ in ends[metric]) <= 0:
            raise PlotError(f"{metric} reaches 0 or less, which no logarithmic axis shows")
    signs = [-1 if SPECS[metric].better == "higher" else 1 for metric in (x, y)]
    on_front = front((signs[0] * a.value, signs[1] * b.value) for _, a, b in whole)
    models = list(dict.fromkeys(cell.model for cell, _, _ in whole))
    points = [
        Point(
            name=cell.name if len(models) == 1 else f"{cell.model}-{cell.name}",
            x=a.value,
            y=b.value,
            x_ends=_ends(a),
            y_ends=_ends(b),
            on_front=(signs[0] * a.value, signs[1] * b.value) in on_front,
        )
        for cell, a, b in whole
    ]
    axes = _axis(x, workloads[x], log_x), _axis(y, workloads[y], log_y)
    drawn = scatter(title or ", ".join(models), points, *axes)
    kept = {id(cell) for cell, _, _ in whole}
    return drawn, [f"{c.model}-{c.name}" for c in cells if id(c) not in kept]


def _having(cell: CellResults, metric: str) -> Iterator[tuple[Any, Record]]:
    return (
        ((record.kind, record.workload.get("name", "")), record)
        for record in cell.records
        if metric in record.metrics
    )


def _workload(cells: Sequence[CellResults], metric: str) -> Any:
    """Kind and name of the workload whose cells are most."""
    counted = Counter(key for cell in cells for key, _ in _having(cell, metric))
    return counted.most_common(1)[0][0] if counted else None


def _value(cell: CellResults, metric: str, workload: Any) -> Value | None:
    records = (record for key, record in _having(cell, metric) if key == workload)
    record = next(records, None)
    return None if record is None else record.metrics[metric]


def _ends(value: Value) -> tuple[float, float]:
    bounds = value.bounds
    if bounds is None or not (math.isfinite(bounds.low) and math.isfinite(bounds.high)):
        return value.value, value.value
    return bounds.low, bounds.high


def _axis(metric: str, workload: Any, logarithmic: bool) -> Axis:
    unit = "%" if metric in SHARES else SPECS[metric].unit
    on = f" on {workload[1]}" if workload and workload[1] else ""
    title = metric + on + (f", {unit}" if unit != "1" else "")
    return Axis(title, logarithmic, 100.0 if metric in SHARES else 1.0)
