"""The history as one table, for whatever reads CSV or Parquet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitgate.history.points import History, Point


class ExportError(Exception):
    """The table cannot be written; the message names the file and the remedy."""


#: columns in their order: how each is called, its type in Arrow, and what is in it
COLUMNS: dict[str, tuple[str, Callable[[Point], Any]]] = {
    "run": ("name", lambda p: p.of.run.name),
    "number": ("int64", lambda p: p.of.run.number),
    "datetime": ("time", lambda p: p.of.run.time),
    "commit": ("name", lambda p: p.of.commit),
    "case": ("name", lambda p: p.of.case),
    "model": ("name", lambda p: p.of.model),
    "recipe": ("name", lambda p: p.of.recipe),
    "method": ("name", lambda p: p.of.method),
    "bits": ("int64", lambda p: p.of.bits),
    "group_size": ("int64", lambda p: p.of.group_size),
    "workload": ("name", lambda p: p.of.workload),
    "device": ("name", lambda p: p.of.execution.device),
    "kernel": ("name", lambda p: p.of.execution.kernel),
    "dtype": ("name", lambda p: p.of.execution.dtype),
    "threads": ("int64", lambda p: p.of.execution.threads),
    "compiled": ("bool", lambda p: p.of.execution.compiled),
    "host": ("name", lambda p: p.of.host),
    "hardware": ("name", lambda p: p.of.hardware),
    "metric": ("name", lambda p: p.metric.name),
    "value": ("float64", lambda p: p.metric.value),
    "low": ("float64", lambda p: p.metric.low),
    "high": ("float64", lambda p: p.metric.high),
    "expected": ("float64", lambda p: p.metric.expected),
    "unit": ("name", lambda p: p.unit),
    "better": ("name", lambda p: p.better),
    "outcome": ("name", lambda p: p.outcome),
}
SUFFIXES = (".csv", ".parquet")


def export(history: History, output: Path) -> int:
    """One row per run, case, execution and metric at `output`, whole or not at all; how many.

    Exact metrics have `low` and `high` equal to `value`. In CSV a value that is not finite reads
    `nan` or `inf`, and what there is none of is empty.

    Raises:
        ExportError: for any other suffix than .csv and .parquet, or if the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    if output.suffix not in SUFFIXES:
        raise ExportError(f"{output}: the format follows from the suffix: {' or '.join(SUFFIXES)}")
    types = {
        "name": pa.dictionary(pa.int32(), pa.string()) if output.suffix == ".parquet" else None,
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
    }
    table = pa.table(
        {
            name: pa.array([take(point) for point in history.points], types[kind] or pa.string())
            for name, (kind, take) in COLUMNS.items()
        }
    )
    partial = output.with_name(f"{output.name}.partial")
    try:
        write = csv.write_csv if output.suffix == ".csv" else parquet.write_table
        write(table, partial)
        partial.replace(output)
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return len(history.points)
