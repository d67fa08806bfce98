"""`bitgate accept`: what earlier runs are compared with from now on."""

from __future__ import annotations

from pathlib import Path

import click

from bitgate.cli.compare import accepted_beside, tolerances
from bitgate.cli.shared import HISTORY, PICK, THRESHOLDS, fits, refuse


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--reason", required=True, help="Why this is good enough; kept with the baseline.")
@HISTORY
@THRESHOLDS
@PICK
@click.option("--even-failed", metavar="REASON", help="Accept cases that failed, and say why.")
def accept(
    run: str,
    reason: str,
    history: Path,
    thresholds_file: Path,
    pattern: str | None,
    even_failed: str | None,
) -> None:
    """Accept a run as the baseline that later ones are compared with.

    Its records and per-item scores are copied to accepted.json and accepted.parquet beside the
    gates: commit both. A record replaces that of the same case, executed alike on the same kind of
    machine; others stay. From then on `pytest bench --against ...` compares with it too.

    \b
    Examples:
      bitgate accept 0007 --reason "torch 2.15: 4 % slower, nothing to be done"
      bitgate accept latest --reason "first baseline" -k '*w4g64*'

    Exit status 0, or 4 if there is no such run, it failed, or the scores of its cases are missing.
    """
    from bitgate.history.accepted import Baseline, choose
    from bitgate.history.against import side_by_side
    from bitgate.history.saved import RunError, names
    from bitgate.history.store import ACCEPTED, LATEST, Reference, Store
    from bitgate.report.comparison import SideBySide, counts, terminal

    if not reason.strip() or (even_failed is not None and not even_failed.strip()):
        refuse("--reason and --even-failed take a reason in words")
    path = accepted_beside(thresholds_file)
    try:
        store = Store([history], path)
        if run == ACCEPTED:
            raise RunError("accepted: name the run that is to be accepted")
        chosen = store.find(run)[0]
        cases = choose(
            chosen,
            lambda case: fits(case, pattern),
            all_of_it=pattern is None,
            even_failed=even_failed,
        )
        baseline = Baseline.read(path)
        if baseline.entries:
            former = Reference(ACCEPTED, store.find(ACCEPTED))
            new = Reference(run, [chosen], store.passed)
            changes = side_by_side(former, new, tolerances(thresholds_file), lambda c: c in cases)
            _show(terminal(SideBySide(former, new, changes)))
            click.echo(f"since the former baseline: {counts(changes)}")
        baseline.accept(chosen, cases, reason.strip(), even_failed=even_failed)
        written = baseline.write()
    except (RunError, ValueError) as error:
        refuse(error)
    except OSError as error:
        refuse(f"{path} cannot be written: {error.strerror or error}")
    click.echo(f"accepted {len(cases)} cases of {chosen.label}: {names(cases)}")
    scores = ", scores beside it: commit both" if len(written) > 1 else ", no scores: commit it"
    click.echo(f"written to {path}{scores}")
    if run == LATEST:
        click.echo(f"latest was {chosen.path}")


def _show(parts: object) -> None:
    from collections.abc import Iterable

    from rich.console import Console

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=180)
    assert isinstance(parts, Iterable)
    for part in parts:
        console.print(part)
