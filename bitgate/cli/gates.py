"""`bitgate gates`: check thresholds.toml, and explain it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import click

from bitgate import kernels, quantize
from bitgate.catalog import CADENCES, Case, Catalog, CatalogError, Execution, load, nearest
from bitgate.cli.shared import CATALOG, THRESHOLDS, show
from bitgate.gates import rules, thresholds
from bitgate.gates.thresholds import Thresholds, ThresholdsError


@click.command()
@CATALOG
@THRESHOLDS
@click.option(
    "--explain",
    metavar="CELL",
    help="Which rule holds for each metric of a cell: its id or a glob.",
)
@click.option(
    "--device",
    type=click.Choice(kernels.DEVICES),
    default="cpu",
    show_default=True,
    help="Explain as if run there.",
)
def gates(catalog: Path, thresholds_file: Path, explain: str | None, device: str) -> None:
    """Check thresholds.toml against the whole matrix, and show what holds where.

    \b
    Examples:
      bitgate gates
      bitgate gates --explain llama-smollm2-135m-hqq-w4g64
      bitgate gates --explain '*w4g64*b1'

    Exit status 0 if the file is sound, 4 if not, as with pytest.
    """
    known, ruled = _read(catalog, thresholds_file)
    if explain is None:
        _overview(known, ruled)
    else:
        _explain(known, ruled, explain, device)


def _read(folder: Path, path: Path) -> tuple[Catalog, Thresholds]:
    try:
        catalog = load(folder, quantize.recipe_types())
        ruled = thresholds.load(path)
        thresholds.check(ruled, catalog.cases(), kernels.DEVICES, quantize.kernel_names())
    except (CatalogError, ThresholdsError) as error:
        click.echo(f"ERROR: {error}", err=True)
        sys.exit(4)
    return catalog, ruled


def _overview(catalog: Catalog, ruled: Thresholds) -> None:
    from rich.table import Table

    table = Table(title=ruled.file, title_justify="left", box=None, pad_edge=False)
    for column in ("gate", "for", "requires"):
        table.add_column(column, overflow="fold")
    for cadence in CADENCES:  # each runs what those before it do, and more
        heading = cadence if cadence == CADENCES[0] else f"+ {cadence}"
        table.add_column(heading, overflow="fold", justify="right")
    met = [
        (
            case.cadence,
            {
                rule.gate
                for execution in _executions(case, "cpu")
                for rule in rules.matching(ruled, case, execution)
            },
        )
        for case in catalog.cases()
    ]
    for gate in ruled.gates:
        matched = dict.fromkeys(CADENCES, 0)
        for cadence, names in met:
            matched[cadence] += gate.name in names
        wanted = ", ".join(
            f"{key} {' or '.join(map(str, values))}" for key, values in gate.match.given().items()
        )
        required = "\n".join(f"{metric} {bound}" for metric, bound in gate.require.items())
        table.add_row(gate.name, wanted or "everything", required, *map(str, matched.values()))
    show(table)


def _meets(ruled: Thresholds, gate: str, case: Case) -> bool:
    """Whether a gate is for a case, wherever that runs."""
    return any(
        rule.gate == gate
        for device in kernels.DEVICES
        for execution in _executions(case, device)
        for rule in rules.matching(ruled, case, execution)
    )


def _explain(catalog: Catalog, ruled: Thresholds, wanted: str, device: str) -> None:
    from rich.table import Table
    from rich.text import Text

    cases = [
        case
        for case in catalog.cases()
        if wanted in (case.cell.id, case.id, case.key)
        or fnmatchcase(case.id, wanted)
        or (wanted.endswith(f"[{case.id}]") and case.kind in wanted)  # a node id of pytest
    ]
    if not cases:
        known = {case.cell.id for case in catalog.cases()}
        click.echo(
            f"ERROR: --explain: no cell is called {wanted!r}; {nearest(wanted, known)}", err=True
        )
        sys.exit(4)
    for case in cases:
        # which kernel serves is known only when the model's shapes are; where that makes a
        # difference, each is shown
        explained: dict[tuple[rules.Row, ...], list[str]] = {}
        for execution in _executions(case, device):
            rows = tuple(rules.explain(rules.matching(ruled, case, execution)))
            explained.setdefault(rows, []).append(execution.kernel)
        for rows, names in explained.items():
            served = f", served by {' or '.join(names)}" if len(explained) > 1 else ""
            title = Text(f"{case.key}{served}{'' if rows else ': no gate'}")
            if not rows:
                show(title)
                continue
            table = Table(title=title, title_justify="left", box=None, pad_edge=False)
            for column in ("metric", "bound", "gate", ""):
                table.add_column(column, overflow="fold")
            for row in rows:
                holds = "holds" if row.wins else "overridden"
                table.add_row(
                    row.metric, row.bound, row.gate, holds, style=None if row.wins else "dim"
                )
            show(table)


def _executions(case: Case, device: str) -> Iterator[Execution]:
    forced = case.cell.recipe.kernel
    own = quantize.own_kernels(case.cell.recipe.method)
    recipe = case.cell.recipe
    joint = kernels.joint_names() if recipe.mixed() else ()
    served: Iterable[str] = (*kernels.KERNELS, *own, *joint) if forced == "auto" else (forced,)
    compiled = bool(getattr(case.workload, "compiled", False))
    for name in served:
        yield Execution(device=device, dtype="", threads=0, kernel=name, compiled=compiled)
