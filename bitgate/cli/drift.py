"""`bitgate drift`: what changed over the saved runs, and since when."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitgate.cli.shared import CASES, METRICS, RUNS

if TYPE_CHECKING:
    from bitgate.history.drift import Change, Drift
    from bitgate.history.points import Point


@click.command()
@RUNS
@CASES
@METRICS
@click.option("--since", metavar="REV", help="Only changes from the runs of this commit on.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["terminal", "markdown", "json"]),
    default="terminal",
    show_default=True,
)
@click.option("--fail", is_flag=True, help="Exit with 1 if something became worse of late.")
@click.option(
    "--last",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="With --fail: of late is in the last so many runs of a case.",
)
def drift(
    history: tuple[Path, ...],
    cases: str | None,
    metrics: tuple[str, ...],
    since: str | None,
    form: str,
    fail: bool,
    last: int,
) -> None:
    """Find the changes in every metric of every case over the saved runs.

    Each is shown with the first run and commit that has it, and the last commit without it.

    \b
    Examples:
      bitgate drift
      bitgate drift -k 'llama*' --metric speedup --since v1.2
      bitgate drift --format markdown --fail

    Absolute times (seconds, tokens per second) follow the load of their machine: they are shown,
    and let --fail fail only if --metric names them. Exit status 0; 1 with --fail if a change for
    the worse began in the last runs; 4 if there are no runs to read.
    """
    from bitgate.history.drift import drift as drifting
    from bitgate.history.reading import HistoryError, history_of
    from bitgate.history.since import start_of
    from bitgate.report import drift as report

    try:
        found = history_of(history)
        wanted = found.only(cases, metrics)
        if found.points and not wanted.points:
            raise HistoryError(_nothing(found.points, cases, metrics))
        drifted = drifting(wanted)
        if since is not None:
            start = start_of(since, found)
            kept = [change for change in drifted.changes if change.first.of.run.time >= start]
            drifted = replace(drifted, changes=kept)
    except HistoryError as error:
        click.echo(f"ERROR: {error}", err=True)
        sys.exit(4)
    if form == "terminal":
        from rich.console import Console

        console = Console()
        width = console.width if console.is_terminal else 160
        text = report.render(drifted, wanted, width=width, colour=console.is_terminal)
    else:
        text = {"markdown": report.markdown, "json": report.as_json}[form](drifted, wanted)
    click.echo(text, nl=not text.endswith("\n"))
    if fail:
        sys.exit(_verdict(drifted, last, metrics))


def _verdict(drifted: Drift, last: int, metrics: tuple[str, ...]) -> int:
    """The exit status of --fail, and its reason on standard error."""
    bad = [change for change in drifted.changes if _fails(change, last, metrics)]
    for change in bad:
        click.echo(
            f"FAIL: {change.first.of.case}: {change.first.metric.name} became worse "
            f"{change.ago} {'run' if change.ago == 1 else 'runs'} ago, with "
            f"{change.first.of.run.name}",
            err=True,
        )
    if not drifted.judged:
        click.echo("WARNING: every series is too short, so --fail has judged nothing", err=True)
    return 1 if bad else 0


def _fails(change: Change, last: int, metrics: tuple[str, ...]) -> bool:
    if change.direction != "worse" or change.ago > last:
        return False
    return not change.series.absolute or change.first.metric.name in metrics


def _nothing(points: list[Point], cases: str | None, metrics: tuple[str, ...]) -> str:
    from bitgate.catalog import nearest

    names = {point.metric.name for point in points}
    for metric in metrics:
        if metric not in names:
            return f"--metric {metric}: no run has it; {nearest(metric, names)}"
    return f"-k {cases}: no case fits; {nearest(cases or '', {point.of.case for point in points})}"
