"""`bitgate export`: the history as a table."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitgate.cli.shared import CASES, METRICS, RUNS


@click.command()
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="FILE.csv or FILE.parquet.",
)
@RUNS
@CASES
@METRICS
def export(
    output: Path, history: tuple[Path, ...], cases: str | None, metrics: tuple[str, ...]
) -> None:
    """Write every metric of every saved run to one table, a row each.

    \b
    Examples:
      bitgate export --output history.csv
      bitgate export --output speed.parquet --metric speedup -k 'llama*'

    The columns are in docs/drift.md. Files that cannot be read are named and left out. Exit status
    4 if nothing can be read, or the table cannot be written.
    """
    from bitgate.history.export import ExportError
    from bitgate.history.export import export as exported
    from bitgate.history.reading import HistoryError, history_of

    try:
        found = history_of(history)
        rows = exported(found.only(cases, metrics), output)
    except (HistoryError, ExportError) as error:
        click.echo(f"ERROR: {error}", err=True)
        sys.exit(4)
    for skipped in found.skipped:
        click.echo(f"WARNING: left out {skipped}", err=True)
    click.echo(f"{rows} rows of {len(found.runs)} runs in {output}")
