"""What is written beside pytest-benchmark's own file, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bitgate.history.items import write_items
from bitgate.plugin import benchmark
from bitgate.plugin.session import Session


@contextmanager
def beside_the_run(config: pytest.Config, session: Session) -> Iterator[None]:
    """While pytest-benchmark saves: put the per-item scores in a Parquet file beside each."""

    def saved(path: Path) -> None:
        session.saved.append(str(path))
        write_items(path.with_suffix(".parquet"), session.in_order())

    benchmark.on_save(config, saved)
    yield
    path = benchmark.json_path(config)
    if path is not None and path.is_file() and session.results:
        saved(path)
