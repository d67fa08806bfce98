"""`bitgate predict`: what a model under a recipe will take, before anything is downloaded."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitgate.catalog import (
    Catalog,
    CatalogError,
    Cell,
    Model,
    Recipe,
    ShapesSource,
    nearest,
)
from bitgate.cli.asked import catalog_of
from bitgate.cli.shared import CATALOG, HISTORY, console, refuse, rendered
from bitgate.kernels import KernelError
from bitgate.quantize import ModelShapes, QuantizeError
from bitgate.quantize.footprint import GIB, base_bytes, element_bytes, footprint, meant
from bitgate.quantize.key_values import cache_bytes
from bitgate.quantize.known_shapes import name_of, shapes_of_config, shapes_without_weights
from bitgate.quantize.lock import LockError, Locks
from bitgate.sources.errors import SourceError

if TYPE_CHECKING:
    from bitgate.report.prediction import Prediction, Row, Setting

DTYPES = ("float32", "float16", "bfloat16")


def _countable(
    context: click.Context, parameter: click.Parameter, gib: float | None
) -> float | None:
    """A range lets through what is no number, or comes to more bytes than there are numbers for."""
    if gib is not None and not math.isfinite(gib * GIB):
        raise click.BadParameter(f"{gib} is no amount of memory.")
    return gib


@click.command()
@CATALOG
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Only this; may be given again."
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    help="A config.json, or the folder that has one, of a model that no catalog has; may be given "
    "again.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="NAME",
    help="Only this, by its name or a part of it that no other has; may be given again. Default: "
    "all that the model can be quantized by.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Tokens of a sequence in the key-value cache, prompt and output together.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Sequences in the key-value cache.",
)
@click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda")),
    default="auto",
    show_default=True,
    help="Where it is served: which kernels there are, and how much memory.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Of what is not quantized. Default: float32 on a CPU, float16 elsewhere, as they are "
    "measured.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    callback=_countable,
    metavar="GIB",
    help="What it has to fit into. Default: what is free on the device now.",
)
@HISTORY
@click.option("--json", "form", flag_value="json", help="Write JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Write Markdown.")
def predict(
    catalog: Path,
    models: tuple[str, ...],
    configs: tuple[Path, ...],
    recipes: tuple[str, ...],
    context: int,
    batch: int,
    device: str,
    dtype: str | None,
    memory: float | None,
    history: Path,
    form: str | None,
) -> None:
    """Say what models will take under recipes: bytes on disk and in memory, whether they fit, how
    long a run will take. No weights are read, and none are fetched.

    \b
    Examples:
      bitgate predict --model llama-2-7b --recipe hqq-w4g64 --recipe nf4
      bitgate predict --config mine/config.json --memory 24 --dtype float16
      bitgate predict --json

    Shapes come from shapes.lock.json, or else from the model's configuration, which for a model on
    a hub needs the network. Exit status 0; 4 if a name, a configuration or the catalog is wrong, if
    a recipe that was named cannot be made of a model, or if no shapes are known at all.
    """
    from bitgate.report import prediction as report

    known = _catalog(catalog)
    wanted = [known.recipes[name] for name in _all(known.recipes, recipes, "recipe")]
    chosen = [known.models[name] for name in _all(known.models, models, "model")]
    if not models and not configs:
        chosen = list(known.models.values())
    setting = _setting(device, dtype, context, batch, memory)
    seconds = _seconds(known, catalog, history)
    found: list[Prediction] = []
    errors: list[str] = []
    unknown: list[tuple[str, str]] = []
    for name, model, shapes in _shapes(catalog, chosen, configs, unknown):
        if isinstance(shapes, str):
            click.echo(f"WARNING: left out: {shapes}", err=True)
            continue
        rows, refused = _rows(known, model, shapes, wanted, setting, seconds, errors)
        if not wanted:
            rows.sort(key=lambda row: row.footprint.size.disk)
        element = element_bytes(setting.dtype)
        cache = None if shapes.cache is None else cache_bytes(shapes.cache, context, batch, element)
        base = base_bytes(shapes, setting.dtype)
        found.append(
            report.Prediction(
                model=name,
                parameters=shapes.parameters,
                linear=shapes.linear_parameters,
                base=base,
                tied=shapes.tied,
                cache=cache,
                positions=shapes.positions,
                rows=rows,
                refused=refused,
            )
        )
    if form == "json":
        click.echo(report.as_json(setting, found, unknown))
    elif form == "markdown":
        click.echo(report.markdown(setting, found))
    else:
        where = console(None, width=160)
        click.echo(rendered(report.terminal(setting, found), where))
    for error in errors:
        click.echo(f"ERROR: {error}", err=True)
    if errors or not found:
        sys.exit(4)


# --- what was asked ----------------------------------------------------------------------------


def _catalog(folder: Path) -> Catalog:
    try:
        return catalog_of(folder)
    except CatalogError as error:
        refuse(error)


def _all(known: Mapping[str, object], asked: Sequence[str], option: str) -> list[str]:
    """Each once, however often it is asked for."""
    return list(dict.fromkeys(_named(known, name, option) for name in asked))


def _named(known: Mapping[str, object], asked: str, option: str) -> str:
    names = meant(asked, known)
    if len(names) == 1:
        return names[0]
    if names:
        refuse(f"--{option}: {asked!r} may be {', '.join(names)}; say which")
    return refuse(f"--{option}: nothing is called {asked!r}; {nearest(asked, known)}")


def _setting(
    device: str, dtype: str | None, context: int, batch: int, memory: float | None
) -> Setting:
    from bitgate.report.prediction import Setting
    from bitgate.sources.memory import available_memory

    if device == "auto":
        device = _device()
    try:
        available = available_memory(device) if memory is None else int(memory * GIB)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA, or no such device
        refuse(
            f"--device: {device} has no memory that can be asked for: {error}; give --memory GIB"
        )
    if available is None:
        refuse("how much memory is free is not known here, as without /proc; give --memory GIB")
    default = "float32" if device == "cpu" else "float16"
    return Setting(device, dtype or default, context, batch, available, memory is not None)


def _device() -> str:
    """Without a driver there is no need to import torch, which takes seconds."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    from bitgate.sources.devices import pick_device

    return pick_device("auto")


def _seconds(known: Catalog, folder: Path, history: Path) -> dict[tuple[str, str], float]:
    """What the cases of each cell took before."""
    from bitgate.cli.compare import accepted_beside
    from bitgate.history.costs import FILE, read_costs, seconds_of_cells
    from bitgate.history.store import Store

    cells = {case.key: (case.cell.model.name, case.cell.recipe.name) for case in known.cases()}
    try:
        costs = read_costs(folder / FILE)
    except CatalogError as error:
        refuse(error)
    store = Store([history], accepted_beside(Path("thresholds.toml")))
    return seconds_of_cells(cells, costs, store.runs)


# --- shapes ------------------------------------------------------------------------------------


def _shapes(
    folder: Path,
    models: Sequence[Model],
    configs: Sequence[Path],
    unknown: list[tuple[str, str]],
) -> Iterator[tuple[str, Model | None, ModelShapes | str]]:
    """Of each model, or why they are not known; a configuration that was given must be right."""
    try:
        locks = Locks.read(folder)
        for model in models:
            try:
                yield model.name, model, shapes_without_weights(model, locks)
            except SourceError as error:
                unknown.append((model.name, str(error)))
                yield model.name, model, str(error)
    except LockError as error:
        refuse(error)
    for path in configs:
        try:
            yield name_of(path), None, shapes_of_config(path)
        except SourceError as error:
            refuse(f"--config: {path}: {error.message.removeprefix('config: ')}")


# --- cells -------------------------------------------------------------------------------------


def _rows(
    known: Catalog,
    model: Model | None,
    shapes: ModelShapes,
    wanted: Sequence[Recipe],
    setting: Setting,
    seconds: Mapping[tuple[str, str], float],
    errors: list[str],
) -> tuple[list[Row], list[tuple[str, str]]]:
    """What each recipe comes to, and those that cannot be made; an error if one was asked for."""
    from bitgate.quantize.misfits import Misfit, brings_weights, nearest
    from bitgate.report.prediction import Row

    rows, refused = list[Row](), list[tuple[str, str]]()
    named = "the configuration" if model is None else model.name
    for recipe in wanted or known.recipes.values():
        if brings_weights(recipe):
            if wanted:
                errors.append(f"recipe {recipe.name}: a checkpoint is as large as its files are")
            continue
        try:
            found = footprint(
                shapes,
                recipe,
                setting.device,
                setting.dtype,
                setting.context,
                setting.batch,
            )
        except (QuantizeError, KernelError) as error:
            why = str(error).removeprefix(f"recipe {recipe.name}: ")
            refused.append((recipe.name, why))
            if wanted:
                near = tuple(nearest(shapes, recipe, known.recipes.values(), setting.device))
                there = frozenset(known.recipes)
                cell = Cell(model or _nameless(), recipe)
                place = known.recipe_places.get(recipe.name, "")
                errors.append(str(Misfit("--recipe", cell, place, why, near, there)))
            continue
        assert found is not None
        rows.append(Row(found, seconds.get((named, recipe.name))))
    return rows, refused


def _nameless() -> Model:
    """Stands for a configuration in messages."""
    source = ShapesSource(kind="shapes")
    return Model(name="the-configuration", family="unknown", source=source, config={})
