"""The report at the end of a run, on pytest's terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitgate.gates.rules import unmatched
from bitgate.history.runs import newest
from bitgate.plugin import benchmark
from bitgate.plugin.cells import case_of
from bitgate.plugin.session import Session
from bitgate.report import terminal

LOG_WIDTH = 150  #: columns, where the output is no terminal


def write(reporter: pytest.TerminalReporter, session: Session) -> None:
    config = reporter.config
    folder = benchmark.storage_path(config)
    reporter.section("bitgate", sep="=", bold=True)
    reporter.write(
        terminal.render(
            session.all_in_order(),
            width=reporter._tw.fullwidth if reporter.isatty else LOG_WIDTH,
            colour=reporter.hasmarkup,
        )
    )
    idle = unmatched(session.thresholds, {gate for r in session.results.values() for gate in r.met})
    if idle:
        said = "gates met no case of this run; `bitgate gates` says which meet how many"
        reporter.write_line(f"{len(idle)} {said}", light=True)
    if folder is not None:
        cases = [result.case.key for result in session.results.values()]
        before = newest(folder, cases, but=[Path(path) for path in session.saved])
        for line in terminal.changes(session.in_order(), before):
            reporter.write_line(line)
    for line in terminal.sources_of_energy(session.in_order()):
        reporter.write_line(line)
    for line in terminal.uncalibrated(session.in_order()):
        reporter.write_line(line)
    for path in session.saved:
        reporter.write_line(f"saved {_short(config, path)}, per-item scores beside it (.parquet)")
    budget = session.budget
    reporter.write_line(f"{budget.used / 60:.1f} min used, budget {budget.minutes}")


def say_what_is_due(reporter: pytest.TerminalReporter, session: Session) -> None:
    """Where -k or -m has left no case: others may be due at another cadence."""
    left_out = reporter.stats.get("deselected", [])
    if not any(case_of(item, session.due) for item in left_out):
        return
    due, all_ = len(session.due), len(session.catalog.cases("weekly"))
    if due < all_:
        reporter.write_line(
            f"none was chosen of the {due} cases that are due at cadence "
            f"{session.options.cadence}; --cadence weekly has all {all_}"
        )


def _short(config: pytest.Config, path: str) -> str:
    try:
        return str(Path(path).relative_to(config.rootpath))
    except ValueError:
        return path
