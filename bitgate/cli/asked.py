"""What options and arguments mean: the catalog of a folder, and an entry of it by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from bitgate.catalog import Catalog

T = TypeVar("T")


def catalog_of(folder: Path) -> Catalog:
    """With a matrix, if there is one: it says what is scored on what, and which cell a recorded
    time is of.

    Raises:
        CatalogError: if a file is wrong; naming it, entry, key and remedy.
    """
    from bitgate import quantize
    from bitgate.catalog import load, load_entries

    read = load if (folder / "matrix.toml").is_file() else load_entries
    return read(folder, quantize.recipe_types())


def named(table: Mapping[str, T], name: str, option: str) -> T:
    """An entry by its name.

    Raises:
        CatalogError: if there is none; naming the option and what comes near.
    """
    from bitgate.catalog import CatalogError, nearest

    if name not in table:
        raise CatalogError(f"{option}: nothing is called {name!r}; {nearest(name, table)}")
    return table[name]
