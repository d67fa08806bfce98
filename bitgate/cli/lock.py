"""`bitgate lock`: the shapes of all models, for whoever must know them without loading any."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from bitgate import quantize
from bitgate.catalog import DEFAULTS, CatalogError, Model, load_entries, nearest
from bitgate.cli.shared import CATALOG, refuse
from bitgate.metric import plural
from bitgate.quantize.lock import Lock, LockedModel, LockError
from bitgate.sources.declared import declared
from bitgate.sources.errors import SourceError


@click.command()
@CATALOG
@click.option(
    "--model", "chosen", multiple=True, metavar="NAME", help="Only this; may be given again."
)
@click.option("--check", is_flag=True, help="Write nothing; say what is out of date.")
def lock(catalog: Path, chosen: tuple[str, ...], check: bool) -> None:
    """Write the shapes of the catalog's models to shapes.lock.json, beside matrix.toml.

    With it, pytest refuses a recipe that a model's layers cannot take before anything runs, and
    names the nearest that they can. Commit it. Shapes come from configurations: weights are fetched
    only where both are one file. A model that cannot be reached keeps its entry. Those that come
    with Bitgate are locked with it, unless models.toml changes them.

    \b
    Examples:
      bitgate lock
      bitgate lock --model llama-mine
      bitgate lock --check

    Exit status 0, with --check 1 if the file is out of date, 4 if it or the catalog is wrong.
    """
    try:
        models = load_entries(catalog, quantize.recipe_types()).models
        found = Lock.read(catalog)
        shipped = Lock.read(DEFAULTS)
    except (CatalogError, LockError) as error:
        refuse(error)
    for name in chosen:
        if name not in models:
            refuse(f"--model: nothing is called {name!r}; {nearest(name, models)}")
    if catalog.resolve() != DEFAULTS.resolve():
        models = {n: m for n, m in models.items() if shipped.current(m) is None}
    wanted = {name: model for name, model in models.items() if not chosen or name in chosen}
    gone = [] if chosen else [name for name in found.models if name not in models]
    if check:
        _check(found, wanted, gone)
    else:
        _write(found, wanted, gone)


def _check(found: Lock, wanted: Mapping[str, Model], gone: list[str]) -> None:
    stale = [f"{name} is no model any more, or is the one that comes with Bitgate" for name in gone]
    for name, model in wanted.items():
        if name not in found.models:
            stale.append(f"{name} is not in it")
        elif declared(model) is None:
            click.echo(f"WARNING: {name}: its source is not on this machine", err=True)
        elif found.current(model) is None:
            stale.append(f"{name} is another one in models.toml than in it")
    for what in stale:
        click.echo(f"{found.path}: {what}")
    if stale:
        click.echo("`bitgate lock` brings it up to date")
        sys.exit(1)
    click.echo(f"{found.path} is up to date: {_models(len(wanted))}")


def _write(found: Lock, wanted: Mapping[str, Model], gone: list[str]) -> None:
    before = dict(found.models)
    for name in gone:
        del found.models[name]
        click.echo(f"{name}: left out, as no model is called so that Bitgate has not locked")
    for name, model in wanted.items():
        try:
            found.models[name] = _locked(model)
        except SourceError as error:
            keeps = "keeps its entry" if name in before else "has no entry"
            click.echo(f"WARNING: {name} {keeps}: {error.message}", err=True)
            continue
        what = "new" if name not in before else "changed"
        same = before.get(name) == found.models[name]
        click.echo(f"{name}: {'unchanged' if same else what}")
    if not found.models and not before:
        click.echo("nothing to write")
        return
    try:
        found.path.write_text(found.text(), "utf-8")
    except OSError as error:
        refuse(f"{found.path} cannot be written: {error.strerror or error}")
    click.echo(f"{found.path}: {_models(len(found.models))}")


def _locked(model: Model) -> LockedModel:
    from bitgate.sources.architecture import skeleton
    from bitgate.sources.models import fetch_config

    config = fetch_config(model)
    source = declared(model)
    if source is None:
        raise SourceError("its source went away while it was read")
    return LockedModel.of(source, quantize.shapes_of(skeleton(config, model.task)))


def _models(n: int) -> str:
    return f"{n} {plural('model', n)}"
