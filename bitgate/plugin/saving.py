"""What is written beside pytest-benchmark's own file, and what it is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitgate.history.items import write_items
from bitgate.plugin import benchmark
from bitgate.plugin.session import Session


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
