"""`bitgate calibrate`: how much do processes differ on this hardware?"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitgate.catalog import Case, Catalog, CatalogError, Cell, PhaseWorkload
from bitgate.cli.asked import catalog_of, named
from bitgate.cli.shared import CATALOG, show
from bitgate.measure import calibration

if TYPE_CHECKING:
    from bitgate.measure.calibration import Calibration
    from bitgate.measure.launches import Launches

SLOWDOWNS = (0.1, 0.05, 0.02)


@click.command()
@click.option(
    "--launches",
    type=click.IntRange(min=calibration.LEAST),
    default=10,
    show_default=True,
    help="Fresh processes to start, one after another.",
)
@click.option("--model", help=f"Of models.toml. Default: {calibration.MODEL}, random weights.")
@click.option("--recipe", help=f"Of recipes.toml. Default: {calibration.RECIPE}.")
@click.option(
    "--workload",
    metavar="NAME",
    help="Of matrix.toml: b1, or decode.b1 where a prefill has the name too. Default: decoding 48 "
    "tokens after a prompt of 32, on one thread.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="On a CPU, in place of what the workload says; 1 if that says nothing.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to keep it in, such as fixtures/calibration.toml, which a project carries for "
    "its runners. Default: your own, in BITGATE_DATA or your data directory.",
)
@CATALOG
def calibrate(
    launches: int,
    model: str | None,
    recipe: str | None,
    workload: str | None,
    device: str,
    threads: int | None,
    output: Path | None,
    catalog: Path,
) -> None:
    """Measure how much a speed differs between processes on this hardware, and keep it.

    A speed that one process has measured is judged with this spread, and the spread of a few
    processes is judged together with it. Without it, 5 % is assumed.

    \b
    Examples:
      bitgate calibrate
      bitgate calibrate --output fixtures/calibration.toml
      bitgate calibrate --model llama-smollm2-135m --recipe hqq-w4g64-head4 --workload b1

    What is measured by default holds for every case on this hardware; a case given by name gets a
    spread of its own. Ctrl-C keeps what 3 launches or more have shown. Exit status 4 if something
    is asked for that is not there, 1 if a launch fails, 2 after Ctrl-C.
    """
    path = output or calibration.user_file()
    try:
        calibration.Calibrations.read(path)  # before minutes are spent on what cannot be added
        case = _case(catalog, model, recipe, workload, threads)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise CatalogError(f"--device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    except CatalogError as error:
        click.echo(f"ERROR: {error}", err=True)
        sys.exit(4)
    entry, complete = _measured(case, device, launches)
    if entry is None:
        click.echo(f"fewer than {calibration.LEAST} launches: nothing is kept", err=True)
        sys.exit(2)
    _tell(entry)
    calibration.keep(path, entry)
    click.echo(f"kept in {path}")
    if not complete:
        sys.exit(2)


def _case(
    folder: Path, model: str | None, recipe: str | None, workload: str | None, threads: int | None
) -> Case:
    catalog = catalog_of(folder)
    cell = Cell(
        named(catalog.models, model or calibration.MODEL, "--model"),
        named(catalog.recipes, recipe or calibration.RECIPE, "--recipe"),
    )
    phase = calibration.WORKLOAD if workload is None else _phase(catalog, workload)
    if threads is not None:
        phase = phase.model_copy(update={"threads": threads})
    return Case(cell, phase, "commit")


def _phase(catalog: Catalog, wanted: str) -> PhaseWorkload:
    phases = {
        f"{kind}.{name}": phase
        for (kind, name), phase in catalog.workloads.items()
        if isinstance(phase, PhaseWorkload)
    }
    found = [key for key in phases if wanted in (key, key.partition(".")[2])]
    if len(found) > 1:
        raise CatalogError(f"--workload: {wanted!r} is two: {' and '.join(found)}")
    return named(phases, found[0] if found else wanted, "--workload")


def _measured(case: Case, device: str, launches: int) -> tuple[Calibration | None, bool]:
    """The calibration, if there were enough launches for one, and whether all of them came."""
    from tempfile import TemporaryDirectory

    import numpy as np

    from bitgate.history.origin import host
    from bitgate.measure.launches import Launches, prepared
    from bitgate.measure.measurement import MeasureError
    from bitgate.measure.processes import ASSUMED
    from bitgate.quantize import QuantizeError
    from bitgate.sources import SourceError, pick_device, track

    seen: dict[str, list[Any]] = {}
    complete = False
    with TemporaryDirectory(prefix="bitgate-calibrate-") as folder:
        try:
            with track(f"{case.cell.id}: quantizing"):
                job = prepared(case, pick_device(device), Path(folder))
            measurement = Launches(job, launches, ASSUMED, limit=launches, label=case.key)
            for items in _each(measurement):
                for name, values in items.items():
                    seen.setdefault(name, []).extend(values)
            complete = True
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
        except (SourceError, QuantizeError) as error:
            click.echo(f"ERROR: {error}", err=True)
            sys.exit(4)
        except MeasureError as error:
            click.echo(f"ERROR: {error}", err=True)
            sys.exit(1)
    if len(set(seen.get("launch", ()))) < calibration.LEAST:
        return None, complete
    items = {name: np.asarray(values) for name, values in seen.items()}
    return calibration.summed_up(case.key, job.execution, items, host()), complete


def _each(measurement: Launches) -> Iterator[Mapping[str, Any]]:
    """The observations of each launch, which are told of as they come."""
    import numpy as np

    for number, batch in enumerate(measurement.batches(), 1):
        base, own = (np.asarray(batch.items[key]) for key in ("base_seconds", "seconds"))
        ratio, step = np.exp(np.median(np.log(base / own))), 1000 * np.median(own)
        click.echo(f"launch {number}: speedup {ratio:.3f}, steps of {step:.0f} ms")
        yield batch.items


def _tell(entry: Calibration) -> None:
    from rich.table import Table

    from bitgate.measure.processes import deviation_interval, launches_needed

    click.echo(f"{entry.case} on {entry.hardware}, {entry.cores} cores, threads {entry.threads}")
    table = Table(box=None, pad_edge=False)
    for column in ("between processes", "deviation", "98 % interval"):
        table.add_column(column)
    spread = entry.spread
    rows = [("paired ratio", spread.ratio), ("absolute times", spread.seconds)]
    if spread.cpu_ratio is not None:
        rows.insert(1, ("paired ratio, CPU clock", spread.cpu_ratio))
    for name, between in rows:
        low, high = (f"{100 * limit:.1f}" for limit in deviation_interval(between))
        table.add_row(name, f"{100 * between.deviation:.1f} %", f"{low} to {high} %")
    show(table)
    click.echo("launches that show, 4 times of 5, that a speed is below its bound:")
    for metric, ratio in (("speedup", spread.ratio), ("cpu_speedup", spread.cpu_ratio)):
        if ratio is not None:
            needed = {slowdown: launches_needed(ratio, slowdown) for slowdown in SLOWDOWNS}
            text = ", ".join(f"{n or 'too many'} for {100 * s:g} %" for s, n in needed.items())
            click.echo(f"  {metric}: {text}")
