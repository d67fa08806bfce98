"""`bitgate show`: one run as one table."""

from __future__ import annotations

from pathlib import Path

import click

from bitgate.cli.compare import accepted_beside
from bitgate.cli.shared import HISTORY, PICK, THRESHOLDS, console, deliver, fits, refuse, rendered

SORTS = (
    "size_mib",
    "bits_per_weight",
    "perplexity_ratio",
    "kl_divergence",
    "top1_agreement",
    "speedup",
    "memory_mib",
    "quantize_seconds",
    "recipe",
)


@click.command()
@click.argument("run", metavar="[RUN]", required=False)
@HISTORY
@THRESHOLDS
@PICK
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="size_mib",
    show_default=True,
    help="The best first; of several texts or phases, by that of most cells.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("terminal", "markdown", "json")),
    default="terminal",
    show_default=True,
)
@click.option(
    "--relative",
    is_flag=True,
    help="What each recipe changes, in percent of the base, at every batch size: quality, size, "
    "peak memory, time, energy and emissions.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it there instead.",
)
def show(
    run: str | None,
    history: Path,
    thresholds_file: Path,
    pattern: str | None,
    sort: str,
    form: str,
    relative: bool,
    output: Path | None,
) -> None:
    """Every cell of a run in one table: size, quality, speed, memory, time to quantize, verdict.

    RUN is a path, the number of a saved run, a git revision, latest (every case of the newest runs
    that passed) or accepted; without it, the run that was saved last, whether it passed or not.

    \b
    Examples:
      bitgate show
      bitgate show 0007 --sort speedup
      bitgate show main -k '*w4*' --format markdown
      bitgate show --relative

    The best of each column is bold; a diamond marks cells that no other beats in both size and
    perplexity. Exit status 0, or 4 if there is no such run, or no such case in it.
    """
    from bitgate.history.cells import cells_of
    from bitgate.history.saved import RunError
    from bitgate.history.store import Store
    from bitgate.report import relative as relatives
    from bitgate.report import table

    if relative and form == "json":
        raise click.UsageError("--relative: as JSON, a run is shown without it, base and all")
    try:
        store = Store([history], accepted_beside(thresholds_file))
        found = store.either(run)
        cells = cells_of(found, lambda case: fits(case, pattern))
    except RunError as error:
        refuse(error)
    for why in store.refused.values():
        click.echo(f"WARNING: left out: {why}", err=True)
    if form == "terminal":
        where = console(output, width=200)
        shown = (
            relatives.terminal(found, relatives.tables(cells))
            if relative
            else table.terminal(found, table.tables(cells, sort), where.width)
        )
        text = rendered(shown, where)
    elif relative:
        text = relatives.markdown(found, relatives.tables(cells))
    else:
        write = table.markdown if form == "markdown" else table.as_json
        text = write(found, table.tables(cells, sort))
    deliver(text, output)
