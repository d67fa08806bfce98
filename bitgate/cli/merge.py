"""`bitgate merge`: one run of many."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="RUN..",
)
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The merged run, NAME.json; its scores go beside it, to NAME.parquet.",
)
@click.option("--partial", is_flag=True, help="Merge although cases that were due are in no run.")
def merge(runs: tuple[Path, ...], output: Path, partial: bool) -> None:
    """Make one run of many that each measured a part (with --benchmark-json).

    \b
    Examples:
      bitgate merge shard-*.json --output run.json
      pytest-benchmark compare run.json

    The Parquet files beside the runs are merged, too. Exit status 4, and nothing written, where
    they are no parts of one run (other commits, uncommitted changes, matrix or gates, the same case
    twice, records of another schema), or a part is missing: a case that was due is in none.
    """
    from bitgate.history.merge import MergeError
    from bitgate.history.merge import merge as merged

    try:
        warnings = merged(runs, output, partial=partial)
    except MergeError as error:
        click.echo(f"ERROR: {error}", err=True)
        sys.exit(4)
    for warning in warnings:
        click.echo(f"WARNING: {warning}", err=True)
    click.echo(f"{len(runs)} runs merged in {output}")
