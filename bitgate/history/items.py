"""Per-item scores of a run in a Parquet file, which makes later comparisons paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.history.record import Result

if TYPE_CHECKING:
    import numpy as np


class BrokenItemsError(Exception):
    """A file of scores that cannot be read."""


def write_items(path: Path, results: Sequence[Result]) -> None:
    """One row per observation: `case`, `item`, and every column that its measurement has.

    The file appears whole or not at all.
    """
    import numpy as np

    rows = []
    for result in results:
        if result.items:
            count = len(next(iter(result.items.values())))
            rows.append(({"case": result.case.key}, {"item": np.arange(count), **result.items}))
    write_rows(path, rows)


def write_rows(
    path: Path, rows: Sequence[tuple[Mapping[str, str | int], Mapping[str, np.ndarray]]]
) -> None:
    """Tables one below the other, each with columns of its own and others that are all one value;
    no file without any."""
    import pyarrow as pa

    tables = []
    for constant, items in rows:
        count = len(next(iter(items.values())))
        columns = {
            name: pa.array([value] * count).dictionary_encode()
            if isinstance(value, str)
            else pa.array([value] * count)
            for name, value in constant.items()
        }
        tables.append(
            pa.table(columns | {name: pa.array(values) for name, values in items.items()})
        )
    if tables:
        _write(path, tables)
    else:
        path.unlink(missing_ok=True)


def merge_items(path: Path, sources: Sequence[Path]) -> None:
    """The rows of all `sources`, one file after the other, in one file at `path`."""
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for source in sources:
        try:
            tables.append(parquet.read_table(source))
        except (OSError, ValueError) as error:  # pyarrow's own errors are such, too
            raise BrokenItemsError(f"{source}: {error}") from None
    try:
        _write(path, tables)
    except pa.ArrowException as error:  # a column that holds numbers here and words there
        names = ", ".join(map(str, sources))
        raise BrokenItemsError(f"{names} do not fit together: {error}") from None


def _write(path: Path, tables: Sequence[Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    partial = path.with_suffix(".partial")
    try:
        parquet.write_table(pa.concat_tables(tables, promote_options="permissive"), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
