"""Per-item scores of a run in a Parquet file, which makes later comparisons paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitgate.history.record import Result


def write_items(path: Path, results: Sequence[Result]) -> None:
    """One row per observation: `case`, `item`, and every column that its measurement has.

    The file appears whole or not at all.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for result in results:
        if not result.items:
            continue
        count = len(next(iter(result.items.values())))
        columns = {
            "case": pa.array([result.case.key] * count).dictionary_encode(),
            "item": pa.array(np.arange(count)),
        }
        columns |= {name: pa.array(values) for name, values in result.items.items()}
        tables.append(pa.table(columns))
    if not tables:
        return
    partial = path.with_suffix(".partial")
    try:
        parquet.write_table(pa.concat_tables(tables, promote_options="permissive"), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
