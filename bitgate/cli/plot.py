"""`bitgate plot`: two figures of each cell of a run as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from bitgate.cli.compare import accepted_beside
from bitgate.cli.shared import HISTORY, PICK, THRESHOLDS, deliver, fits, refuse


@click.command()
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--x", "x_metric", default="size_mib", show_default=True, metavar="METRIC")
@click.option("--y", "y_metric", default="accuracy", show_default=True, metavar="METRIC")
@click.option(
    "--out", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The SVG."
)
@click.option("--log-x", is_flag=True, help="A logarithmic axis.")
@click.option("--log-y", is_flag=True, help="A logarithmic axis.")
@click.option("--title", help="Above the picture; default: the model.")
@HISTORY
@THRESHOLDS
@PICK
def plot(
    run: str | None,
    x_metric: str,
    y_metric: str,
    out: Path,
    log_x: bool,
    log_y: bool,
    title: str | None,
    history: Path,
    thresholds_file: Path,
    pattern: str | None,
) -> None:
    """Draw one metric of each cell of a run against another, as an SVG.

    RUN is what `bitgate show` takes; without it, the run that was saved last. Bars are the metrics'
    intervals. Cells that no other beats in both metrics are joined.

    \b
    Examples:
      bitgate plot -k 'deit*' --out ablation.svg
      bitgate plot 0007 --x size_mib --y perplexity_ratio --log-y --out llama.svg

    Exit status 0, or 4 if there is no such run or metric, or no cell has both.
    """
    from bitgate.history.cells import cells_of
    from bitgate.history.saved import RunError
    from bitgate.history.store import Store
    from bitgate.report.ablation import PlotError, ablation

    try:
        store = Store([history], accepted_beside(thresholds_file))
        found = store.either(run)
        cells = cells_of(found, lambda case: fits(case, pattern))
        picture, lacking = ablation(cells, x_metric, y_metric, title, log_x=log_x, log_y=log_y)
    except (RunError, PlotError) as error:
        refuse(error)
    deliver(picture.rstrip("\n"), out)
    if lacking:
        click.echo(
            f"WARNING: left out, as one of the two is missing: {', '.join(lacking)}", err=True
        )
