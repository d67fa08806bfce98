"""Per-item scores of a run in a Parquet file, which makes later comparisons paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitgate.history.record import Result


class BrokenItemsError(Exception):
    """A file of scores that cannot be read."""


def write_items(path: Path, results: Sequence[Result]) -> None:
    """One row per observation: `case`, `item`, and every column that its measurement has.

    The file appears whole or not at all.
    """
    import numpy as np
    import pyarrow as pa

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
    if tables:
        _write(path, tables)


def merge_items(path: Path, sources: Sequence[Path]) -> None:
    """The rows of all `sources`, one file after the other, in one file at `path`."""
    from pyarrow import parquet

    tables = []
    for source in sources:
        try:
            tables.append(parquet.read_table(source))
        except (OSError, ValueError) as error:  # pyarrow's own errors are such, too
            raise BrokenItemsError(f"{source}: {error}") from None
    _write(path, tables)


def _write(path: Path, tables: Sequence[Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    partial = path.with_suffix(".partial")
    try:
        parquet.write_table(pa.concat_tables(tables, promote_options="permissive"), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
