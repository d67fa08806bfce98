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
    LabelledDataset,
    LocalSource,
    Model,
    Recipe,
    Source,
)
from bitgate.catalog.errors import CatalogError, nearest
from bitgate.catalog.matrix import Catalog
from bitgate.catalog.plans import Plan, Rule
from bitgate.catalog.workloads import TABLES, MatrixEntry

EntryT = TypeVar("EntryT", bound=BaseModel)

DEFAULTS = Path(__file__).parents[1] / "defaults"


def load(folder: Path, methods: Mapping[str, type[Recipe]]) -> Catalog:
    """Read the default catalog, then a project's own `models.toml`, `datasets.toml`, `plans.toml`,
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
    avoided: dict[str, tuple[str, list[str]]] = {}
    for path in (DEFAULTS, folder):
        avoided |= _read_datasets(catalog, path / "datasets.toml")
    for name, (where, others) in avoided.items():
        _avoid(catalog, name, where, others)
    for path in (DEFAULTS, folder):  # models that are trained here name datasets, and each other
        _read_models(catalog, path / "models.toml")
    for path in (DEFAULTS, folder):  # plans name datasets, so all of them must be known
        _read_plans(catalog, path / "plans.toml")
    for path in (DEFAULTS, folder):  # and recipes both
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
    of_source = bool(loc) and loc[0] in ("source", "training", "labels", "more")
    at = 2 if loc[:1] == ("more",) else 1
    if of_source and len(loc) > at:  # pydantic puts the kind, which is no key, between
        known, loc = set(SOURCES[loc[at]].model_fields), (*loc[:at], *loc[at + 1 :])
    key = ".".join(str(part) for part in loc) or "entry"
    if error["type"] == "extra_forbidden":
        hint = f"; {nearest(str(loc[-1]), known)}" if len(loc) == 1 or of_source else ""
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
        if isinstance(source := data.get("source"), dict) and source.get("kind") == "trained":
            data = {**data, "source": _resolved(catalog, source, where)}
        model = parse(Model, {**data, "name": name}, where)
        update = _anchored(model.source, path)
        if model.tokenizer is not None:
            update["tokenizer"] = path.parent / model.tokenizer
        catalog.models[name] = model.model_copy(update=update)


def _resolved(catalog: Catalog, source: dict[str, Any], where: str) -> dict[str, Any]:
    """A source that is trained here, with the model and the dataset that it names."""
    found = dict(source)
    if isinstance(name := source.get("dataset"), str):
        found["dataset"] = catalog.labelled_dataset(name, where, "source.dataset")
    if isinstance(name := source.get("base"), str):
        found["base"] = catalog.model(name, where, "source.base")
    return found


def _read_datasets(catalog: Catalog, path: Path) -> dict[str, tuple[str, list[str]]]:
    """Also which others each of them avoids, by name, and where it says so."""
    avoided: dict[str, tuple[str, list[str]]] = {}
    tables = _tables(path, {"dataset", "labelled"})
    for name, where, data in _named(path, "labelled", tables.get("labelled", {})):
        labelled = parse(LabelledDataset, {**data, "name": name}, where)
        update = _anchored(labelled.source, path)
        for key in ("training", "labels"):
            one = getattr(labelled, key)
            if one is not None and (there := _anchored(one, path)):
                update[key] = there["source"]
        if labelled.more:
            update["more"] = tuple(_anchored(s, path).get("source", s) for s in labelled.more)
        catalog.labelled[name] = labelled.model_copy(update=update)
    for name, where, data in _named(path, "dataset", tables.get("dataset", {})):
        others = data.pop("avoid", [])
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise CatalogError(f"{where}: avoid: expected a list of datasets' names")
        avoided[name] = where, others
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
    return avoided


def _avoid(catalog: Catalog, name: str, where: str, others: list[str]) -> None:
    dataset, found = catalog.datasets[name], list[Dataset]()
    for other in others:
        if other not in catalog.datasets or other == name:
            raise CatalogError(
                f"{where}: avoid: nothing else is called {other!r}; "
                f"{nearest(other, catalog.datasets.keys() - {name})}"
            )
        avoided = catalog.datasets[other]
        if dataset.shares_text_with(avoided):  # another text is apart anyway
            found.append(avoided.model_copy(update={"avoid": ()}))
    catalog.datasets[name] = dataset.model_copy(update={"avoid": tuple(found)})


def _anchored(source: Source, toml: Path) -> dict[str, Any]:
    if isinstance(source, LocalSource):
        return {"source": source.model_copy(update={"path": toml.parent / source.path})}
    if isinstance(source, FileSource) and "://" not in source.url:
        return {"source": source.model_copy(update={"url": str(toml.parent / source.url)})}
    return {}


def _read_plans(catalog: Catalog, path: Path) -> None:
    for name, where, data in _named(path, "plan", _tables(path, {"plan"}).get("plan", {})):
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise CatalogError(f"{where}: rules: expected a list of rules, {{ ... }}")
        parsed = tuple(parse(Rule, rule, f"{where}: rule {n}") for n, rule in enumerate(rules, 1))
        texts = {
            key: catalog.dataset(data[key], where, key)
            for key in ("searched_on",)
            if isinstance(data.get(key), str)
        }
        given = {**data, **texts, "rules": parsed, "name": name, "where": where}
        catalog.plans[name] = parse(Plan, given, where)


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
        texts = {
            key: catalog.dataset(name, where, key)
            for key in recipe_type.calibrated_by
            if isinstance(name := data.get(key, recipe_type.default_text), str)
        }
        for values in itertools.product(*crossed.values()):
            chosen = {k: v for k, v in zip(crossed, values, strict=True) if v is not None}
            plans = {
                key: catalog.plan(chosen[key], where, key)
                for key in recipe_type.planned_by
                if isinstance(chosen.get(key), str)
            }
            recipe = parse(recipe_type, {**data, **chosen, **texts, **plans}, where)
            if "source" in recipe_type.model_fields:
                recipe = recipe.model_copy(update=_anchored(getattr(recipe, "source"), path))  # noqa: B009
            if read.setdefault(recipe.name, recipe) != recipe:
                raise CatalogError(
                    f"{where}: two recipes of this file are called {recipe.name}; "
                    "give one of them another `label`"
                )
            catalog.recipe_places[recipe.name] = where
    catalog.recipes.update(read)


def _read_matrix(catalog: Catalog, path: Path) -> None:
    tables = _tables(path, {"matrix", *TABLES})
    for kind, workload in TABLES.items():
        for name, where, data in _named(path, kind, tables.get(kind, {})):
            given = dict(data)
            for key, table in workload.named.items():
                if isinstance(wanted := data.get(key), str):
                    find = catalog.dataset if table == "dataset" else catalog.labelled_dataset
                    given[key] = find(wanted, where, key)
            parsed = parse(workload, {**given, "name": name, "kind": kind}, where)
            catalog.workloads[kind, name] = parsed
    entries = tables.get("matrix", [])
    if not isinstance(entries, list) or not entries:
        raise CatalogError(f"{path}: matrix: expected at least one [[matrix]] table")
    for number, data in enumerate(entries, 1):
        where = f"{path}: [[matrix]] number {number}"
        catalog.matrix.append((where, parse(MatrixEntry, data, where)))
