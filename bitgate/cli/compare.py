"""`bitgate compare`: two runs side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitgate.cli.shared import HISTORY, PICK, THRESHOLDS, console, deliver, fits, refuse, rendered

if TYPE_CHECKING:
    from bitgate.gates.tolerances import Tolerance
    from bitgate.report.comparison import SideBySide

#: what `git bisect run` takes as: this commit tells nothing
SKIP = 125
MORE = ("missing", "not comparable", "inconclusive")


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@HISTORY
@THRESHOLDS
@PICK
@click.option(
    "--format",
    "form",
    type=click.Choice(("terminal", "markdown", "json")),
    default="terminal",
    show_default=True,
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it there instead.",
)
@click.option(
    "--fail-on",
    type=click.Choice(MORE),
    multiple=True,
    help="Exit with 1 on these too, not only on a regression. May be given several times.",
)
@click.option(
    "--bisect",
    is_flag=True,
    help="For `git bisect run`: exit with 125 where nothing can be said.",
)
def compare(
    a: str,
    b: str,
    history: Path,
    thresholds_file: Path,
    pattern: str | None,
    form: str,
    output: Path | None,
    fail_on: tuple[str, ...],
    bisect: bool,
) -> None:
    """Quality, size, speed and energy of two runs side by side, A before B.

    Each is a path, the number of a saved run, a git revision, latest (every case of the newest
    runs that passed) or accepted. A score is paired window by window, a speed judged by how much it
    varied over earlier runs on this hardware.

    \b
    Examples:
      bitgate compare 0006 0007
      bitgate compare main HEAD --format markdown
      bitgate compare accepted latest -k '*w4g64*'

    Exit status 0 if nothing became worse, 1 on a regression, 4 if the runs cannot be compared.
    """
    from bitgate.history.against import side_by_side
    from bitgate.history.saved import RunError
    from bitgate.history.store import Store
    from bitgate.report.comparison import SideBySide

    unknown = SKIP if bisect else 4
    try:
        store = Store([history], accepted_beside(thresholds_file))
        found = (store.either(a), store.either(b))
        changes = side_by_side(*found, tolerances(thresholds_file), lambda c: fits(c, pattern))
    except (RunError, ValueError) as error:
        refuse(error, unknown)
    for why in store.refused.values():
        click.echo(f"WARNING: left out: {why}", err=True)
    _write(SideBySide(*found, changes), form, output)
    verdicts = {change.verdict for change in changes}
    if verdicts & {"regression", *fail_on}:
        sys.exit(1)
    if not any(change.judge for change in changes):
        refuse(f"nothing of {a} and {b} can be compared", unknown)
    if bisect and "missing" in verdicts:
        sys.exit(SKIP)


def tolerances(path: Path) -> Mapping[str, Tolerance]:
    """Of the file of gates; without one, what holds by default."""
    from bitgate.gates import thresholds
    from bitgate.gates.tolerances import DEFAULTS

    return thresholds.load(path).against if path.is_file() else DEFAULTS


def accepted_beside(path: Path) -> Path:
    """The baseline that belongs to a file of gates."""
    from bitgate.history.accepted import FILE

    return path.parent / FILE


def _write(found: SideBySide, form: str, output: Path | None) -> None:
    from bitgate.report import comparison

    if form == "terminal":
        text = rendered(comparison.terminal(found), console(output, width=180))
    else:
        text = comparison.markdown(found) if form == "markdown" else comparison.as_json(found)
    deliver(text, output)
