"""`bitgate curves`: did the training of a model overfit?"""

from __future__ import annotations

from pathlib import Path

import click

from bitgate import quantize
from bitgate.catalog import CatalogError, TrainedSource, load_entries, nearest
from bitgate.cli.shared import CATALOG, console, deliver, refuse, rendered
from bitgate.sources.errors import SourceError


@click.command()
@click.argument("name", metavar="MODEL")
@CATALOG
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw both losses there too, for a browser.",
)
def curves(name: str, catalog: Path, svg: Path | None) -> None:
    """Training and validation loss of every epoch of a model that is trained here.

    MODEL is one of models.toml with a source of kind "trained"; if nobody has trained it on this
    machine yet, that is done now. Marked are the epoch with the lowest validation loss and the one
    whose weights the model has.

    \b
    Examples:
      bitgate curves llama-smollm2-135m-sentiment
      bitgate curves llama-smollm2-135m-sentiment --svg curves.svg

    Exit status 0, or 4 if there is no such model, or it cannot be trained.
    """
    try:
        models = load_entries(catalog, quantize.recipe_types()).models
    except CatalogError as error:
        refuse(error)
    trained = {n: m for n, m in models.items() if isinstance(m.source, TrainedSource)}
    if name not in trained:
        why = "is not trained here" if name in models else "is no model"
        refuse(f"{name} {why}: models.toml; {nearest(name, trained)}")

    from bitgate.report import curves as drawn
    from bitgate.sources import fetch_model
    from bitgate.sources.losses import read_losses

    try:
        folder = fetch_model(trained[name])
        assert folder is not None
        losses = read_losses(folder)
    except SourceError as error:
        refuse(error)
    where = console(None, width=100)
    click.echo(rendered([drawn.table(name, losses), drawn.verdict(losses)], where))
    if svg is not None:
        deliver(drawn.svg(name, losses).rstrip("\n"), svg)
