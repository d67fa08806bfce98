"""The catalog's TOML files, read and checked; an error names the file, the entry and the key."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bitgate.catalog.entries import (
    SOURCES,
    Dataset,
    FileSource,
    LocalSource,
    MatrixEntry,
    Model,
    PhaseWorkload,
    Recipe,
    Source,
)
from bitgate.catalog.errors import CatalogError, nearest
from bitgate.catalog.matrix import Catalog

EntryT = TypeVar("EntryT", bound=BaseModel)

DEFAULTS = Path(__file__).parents[1] / "defaults"


def load(folder: Path, methods: Mapping[str, type[Recipe]]) -> Catalog:
    """Read the default catalog, then a project's own `models.toml`, `datasets.toml`,
    `recipes.toml` and `matrix.toml` in `folder`, which add to it and override it by name.

    `methods` maps a method's name to the recipe class that checks its keys.
    """
    if not (folder / "matrix.toml").is_file():
        raise CatalogError(
            f"{folder / 'matrix.toml'} is missing: it says which models meet which recipes; "
            "give the folder that has it with --catalog"
        )
    catalog = load_entries(folder, methods)
    _read_matrix(catalog, folder / "matrix.toml")
    catalog.cases()  # every name is looked up now, not when its cadence comes
    return catalog


def load_entries(folder: Path, methods: Mapping[str, type[Recipe]]) -> Catalog:
    """The same without a matrix: what there is to choose from, in a project or outside of one."""
    catalog = Catalog()
    for path in (DEFAULTS, folder):
        _read_models(catalog, path / "models.toml")
        _read_datasets(catalog, path / "datasets.toml")
        _read_recipes(catalog, path / "recipes.toml", methods)
    return catalog


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; none if there is no such file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: not valid TOML: {error}") from None


def parse(entry: type[EntryT], data: Any, where: str) -> EntryT:
    """`entry` from TOML data; the error names each offending key of `where`."""
    try:
        return entry.model_validate(data)
    except ValidationError as error:
        raise CatalogError("\n".join(_explain(entry, where, e) for e in error.errors())) from None


def _explain(entry: type[BaseModel], where: str, error: Any) -> str:
    loc, message = error["loc"], error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and not loc:  # it is about several keys, and names them
        return f"{where}: {message}"
    known = set(entry.model_fields) - {"name"}
    if loc[:1] == ("source",) and len(loc) > 1:  # pydantic puts the kind, which is no key, between
        known, loc = set(SOURCES[loc[1]].model_fields), (loc[0], *loc[2:])
    key = ".".join(str(part) for part in loc) or "entry"
    if error["type"] == "extra_forbidden":
        hint = f"; {nearest(str(loc[-1]), known)}" if len(loc) == 1 or loc[0] == "source" else ""
        return f"{where}: {key}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{where}: {key}: this key is missing"
    return f"{where}: {key}: {message} (got {error['input']!r})"


def _tables(path: Path, allowed: set[str]) -> dict[str, Any]:
    tables = read_toml(path)
    for key in tables:
        if key not in allowed:
            raise CatalogError(f"{path}: {key}: unknown table; {nearest(key, allowed)}")
    return tables


def _named(path: Path, kind: str, table: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if not isinstance(table, dict):
        raise CatalogError(f"{path}: {kind}: expected tables like [{kind}.some-name]")
    for name, data in table.items():
        if not isinstance(data, dict):
            raise CatalogError(f"{path}: {kind}.{name}: expected a table")
        yield name, f"{path}: [{kind}.{name}]", data


def _read_models(catalog: Catalog, path: Path) -> None:
    for name, where, data in _named(path, "model", _tables(path, {"model"}).get("model", {})):
        model = parse(Model, {**data, "name": name}, where)
        update = _anchored(model.source, path)
        if model.tokenizer is not None:
            update["tokenizer"] = path.parent / model.tokenizer
        catalog.models[name] = model.model_copy(update=update)


def _read_datasets(catalog: Catalog, path: Path) -> None:
    for name, where, data in _named(path, "dataset", _tables(path, {"dataset"}).get("dataset", {})):
        dataset = parse(Dataset, {**data, "name": name}, where)
        if dataset.stride is not None and dataset.stride > dataset.window:
            raise CatalogError(
                f"{where}: stride: {dataset.stride} would skip text; "
                f"give at most window, {dataset.window}"
            )
        if dataset.tokens_limit is not None and dataset.tokens_limit < dataset.tokens:
            raise CatalogError(
                f"{where}: tokens_limit: {dataset.tokens_limit} is too few; "
                f"give at least tokens, {dataset.tokens}"
            )
        catalog.datasets[name] = dataset.model_copy(update=_anchored(dataset.source, path))


def _anchored(source: Source, toml: Path) -> dict[str, Any]:
    if isinstance(source, LocalSource):
        return {"source": source.model_copy(update={"path": toml.parent / source.path})}
    if isinstance(source, FileSource) and "://" not in source.url:
        return {"source": source.model_copy(update={"url": str(toml.parent / source.url)})}
    return {}


def _read_recipes(catalog: Catalog, path: Path, methods: Mapping[str, type[Recipe]]) -> None:
    entries = _tables(path, {"recipe"}).get("recipe", [])
    if not isinstance(entries, list):
        raise CatalogError(f"{path}: recipe: expected [[recipe]] tables")
    read: dict[str, Recipe] = {}
    for number, data in enumerate(entries, 1):
        where = f"{path}: [[recipe]] number {number}"
        if not isinstance(data, dict):
            raise CatalogError(f"{where}: expected a table")
        method = data.get("method")
        if not isinstance(method, str) or method not in methods:
            wrong = "this key is missing" if method is None else f"nothing is called {method!r}"
            raise CatalogError(f"{where}: method: {wrong}; {nearest(str(method), methods)}")
        recipe_type = methods[method]
        crossed = {k: v if isinstance(v := data.get(k), list) else [v] for k in recipe_type.crossed}
        if empty := [key for key, values in crossed.items() if not values]:
            raise CatalogError(f"{where}: {empty[0]}: an empty list makes no recipe")
        for values in itertools.product(*crossed.values()):
            chosen = {k: v for k, v in zip(crossed, values, strict=True) if v is not None}
            recipe = parse(recipe_type, {**data, **chosen}, where)
            if read.setdefault(recipe.name, recipe) != recipe:
                raise CatalogError(
                    f"{where}: two recipes of this file are called {recipe.name}; "
                    "give one of them another `label`"
                )
    catalog.recipes.update(read)


def _read_matrix(catalog: Catalog, path: Path) -> None:
    tables = _tables(path, {"matrix", "decode", "prefill"})
    for kind in ("decode", "prefill"):
        for name, where, data in _named(path, kind, tables.get(kind, {})):
            workload = parse(PhaseWorkload, {**data, "name": name, "kind": kind}, where)
            catalog.phases[kind, name] = workload
    entries = tables.get("matrix", [])
    if not isinstance(entries, list) or not entries:
        raise CatalogError(f"{path}: matrix: expected at least one [[matrix]] table")
    for number, data in enumerate(entries, 1):
        where = f"{path}: [[matrix]] number {number}"
        catalog.matrix.append((where, parse(MatrixEntry, data, where)))
