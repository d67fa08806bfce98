"""`bitgate propose`: bounds from recorded runs, as a diff of thresholds.toml."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitgate.cli.shared import CASES, CATALOG, METRICS, RUNS, THRESHOLDS

if TYPE_CHECKING:
    from bitgate.catalog import Catalog
    from bitgate.gates.bounds import Observation
    from bitgate.gates.propose import Proposals
    from bitgate.gates.thresholds import Thresholds
    from bitgate.history.points import History


@click.command()
@click.option(
    "--from",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A saved run instead of the whole history; may be given again.",
)
@RUNS
@CASES
@METRICS
@click.option(
    "--margin",
    type=click.FloatRange(0),
    default=3.0,
    show_default=True,
    help="Half-widths of the interval between what was measured and its bound.",
)
@click.option("--allow-looser", is_flag=True, help="Loosen bounds too, where measurements say so.")
@click.option("--write", is_flag=True, help="Change thresholds.toml as well.")
@CATALOG
@THRESHOLDS
def propose(
    runs: tuple[Path, ...],
    history: tuple[Path, ...],
    cases: str | None,
    metrics: tuple[str, ...],
    margin: float,
    allow_looser: bool,
    write: bool,
    catalog: Path,
    thresholds_file: Path,
) -> None:
    """Print bounds that follow from recorded runs as a diff, with the reason beside each.

    \b
    Examples:
      bitgate propose
      bitgate propose -k '*w4g64*' --metric perplexity_ratio | git apply
      bitgate propose --from .benchmarks/*/0012_*.json --write

    A bound is the worst of all runs plus (or minus) 3 half-widths of its interval, rounded away
    from it. Existing bounds are tightened, loosened only with --allow-looser, and kept where a
    comment calls them a need or a case that they are for has no run. Metrics without a rule get a
    new gate, absolute times only if --metric names them. Standard error says what is left out.

    Exit status 0, also if there is nothing to propose; 4 if there are no runs or a file is wrong.
    """
    from bitgate import quantize
    from bitgate.catalog import CatalogError
    from bitgate.gates import propose as proposing
    from bitgate.gates import rewrite
    from bitgate.gates.thresholds import ThresholdsError
    from bitgate.history.reading import HistoryError, history_of

    try:
        found = history_of(runs or history)
        known, ruled, text = _read(catalog, thresholds_file)
        wanted = found.only(cases, metrics)
        seen, notes = _observations(wanted, known, set(metrics))
        proposals = proposing.propose(
            ruled,
            known.cases(),
            seen,
            quantize.kernel_names(),
            margin=margin,
            needs=rewrite.needs(text or ""),
        )
        changes = [one for one in proposals.changes if allow_looser or not one.looser]
        new = rewrite.rewrite(text or "", changes, proposals.gates)
        _check(new, known)
    except (HistoryError, CatalogError, ThresholdsError) as error:
        click.echo(f"ERROR: {error}", err=True)
        sys.exit(4)
    notes = [*(f"left out {skipped}" for skipped in found.skipped), *notes, *proposals.notes]
    notes += _kept(proposals, allow_looser)
    for note in notes:
        click.echo(note, err=True)
    if new == (text or ""):
        click.echo(f"nothing to propose from {len(found.runs)} runs", err=True)
        return
    click.echo(rewrite.diff(_relative(thresholds_file), text, new), nl=False)
    if write:
        partial = thresholds_file.with_name(f"{thresholds_file.name}.partial")
        partial.write_bytes(new.encode())
        partial.replace(thresholds_file)
        click.echo(f"{thresholds_file} is written", err=True)


def _read(folder: Path, path: Path) -> tuple[Catalog, Thresholds, str | None]:
    """The catalog, the gates and their text; without a file none of the latter two."""
    from bitgate import kernels, quantize
    from bitgate.catalog import load
    from bitgate.gates import thresholds

    catalog = load(folder, quantize.recipe_types())
    if not path.exists():
        click.echo(f"{path} is missing: a new one is proposed", err=True)
        return catalog, thresholds.Thresholds(str(path), ()), None
    ruled = thresholds.load(path)
    thresholds.check(ruled, catalog.cases(), kernels.DEVICES, quantize.kernel_names())
    return catalog, ruled, path.read_bytes().decode("utf-8")


def _observations(
    history: History, catalog: Catalog, named: set[str]
) -> tuple[list[Observation], list[str]]:
    """What bounds can be made of, and why the rest cannot."""
    from bitgate.gates.bounds import Observation
    from bitgate.history.series import ABSOLUTE
    from bitgate.metric import SPECS

    cases = {case.key: case for case in catalog.cases()}
    gone: dict[str, None] = {}
    seen = []
    for point in history.points:
        case, metric = cases.get(point.of.case), point.metric
        if case is None:
            gone[point.of.case] = None
        elif metric.name in SPECS and (point.unit not in ABSOLUTE or metric.name in named):
            seen.append(Observation(case, point.of.execution, metric, point.of.run.name))
    return seen, [f"{key} is recorded, but no case of the matrix any more" for key in gone]


def _kept(proposals: Proposals, allow_looser: bool) -> list[str]:
    from bitgate.gates.thresholds import written

    return [
        f'"{one.gate}" {one.metric}: {one.key} {written(one.was or 0)} is kept, '
        f"{written(one.bound)} would be looser ({one.reason}): --allow-looser"
        for one in proposals.changes
        if one.looser and not allow_looser
    ]


def _check(text: str, catalog: Catalog) -> None:
    """What is proposed must be what Bitgate takes."""
    from tempfile import TemporaryDirectory

    from bitgate import kernels, quantize
    from bitgate.gates import thresholds

    with TemporaryDirectory() as folder:
        path = Path(folder) / "thresholds.toml"
        path.write_bytes(text.encode())
        loaded = thresholds.load(path, "what is proposed")
    thresholds.check(loaded, catalog.cases(), kernels.DEVICES, quantize.kernel_names())


def _relative(path: Path) -> str:
    relative = Path(os.path.relpath(path)).as_posix()
    return path.name if relative.startswith("..") else relative
