"""What is written beside pytest-benchmark's own file, and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitgate.history.items import write_items
from bitgate.plugin import benchmark, journal
from bitgate.plugin.session import Session


def settle(config: pytest.Config, session: Session) -> None:
    """Records get the verdicts that were known only when all was measured."""
    settled = {}
    for nodeid in session.results:
        result = session.told(nodeid)
        if result is not None and result.execution is not None:
            record = result.record()
            settled[nodeid] = {key: record[key] for key in ("verdicts", "outcome")}
    benchmark.amend(config, settled)


def say_what_failed(config: pytest.Config, session: Session, output: dict[str, Any]) -> None:
    """By case, or by test where it is none; what has no record, with the reason; and of which
    run it is, or a part."""
    keeper = journal.keeper_of(config)
    failed = {}
    for nodeid, why in session.failed.items():
        case = session.case_of(nodeid)
        failed[nodeid if case is None else case.key] = why
    output["bitgate"] = {
        "failed": failed,
        "unfinished": 0 if keeper is None else len(keeper.unfinished),
        "absent": [r.absence() for r in session.all_in_order() if r.execution is None],
        **({} if keeper is None else keeper.identity()),
    }


def beside_the_run(config: pytest.Config, session: Session) -> None:
    """When pytest-benchmark saves: put the per-item scores in a Parquet file beside the run."""
    benchmark.on_save(config, lambda path: _saved(session, path))


def beside_the_json(config: pytest.Config, session: Session) -> None:
    """The same for --benchmark-json, once that is written."""
    path = benchmark.json_path(config)
    if path is not None and path.is_file() and session.results:
        _saved(session, path)


def _saved(session: Session, path: Path) -> None:
    session.saved.append(str(path))
    write_items(path.with_suffix(".parquet"), session.in_order())
