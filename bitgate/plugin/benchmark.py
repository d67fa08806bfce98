"""The one adapter to pytest-benchmark: every private name of it that Bitgate uses is here.

Held by pytest-benchmark >= 5.3.1, < 6, and by tests/unit/test_benchmark_adapter.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture, FixtureAlreadyUsed


class Rounds:
    """Rounds whose number is not known beforehand, as neither `benchmark(...)` nor
    `benchmark.pedantic(...)` can take them; like these, it uses the fixture up."""

    def __init__(self, benchmark: BenchmarkFixture) -> None:
        self.benchmark = benchmark

    def __enter__(self) -> Rounds:
        if self.benchmark._mode:
            self.benchmark.has_error = True
            raise FixtureAlreadyUsed(
                f"Fixture can only be used once. Previously it was used in {self.benchmark._mode} "
                "mode."
            )
        self.benchmark._mode = "gate.decide(...)"
        self.stats = self.benchmark._make_stats(iterations=1) if self.benchmark.enabled else None
        return self

    def add(self, seconds: Sequence[float]) -> None:
        if self.stats is not None:
            for duration in seconds:
                self.stats.update(duration)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or (self.stats is not None and not self.stats.stats.data):
            self.benchmark.has_error = True  # a record without rounds cannot be saved


def storage_path(config: pytest.Config) -> Path | None:
    """The folder with this machine's saved runs; None if they are kept elsewhere."""
    storage = config._benchmarksession.storage  # type: ignore[attr-defined]
    path = getattr(storage, "path", None)
    return None if path is None else Path(path) / storage.default_machine_id


def json_path(config: pytest.Config) -> Path | None:
    """The file of --benchmark-json, if it was asked for."""
    path: Any = config._benchmarksession.json  # type: ignore[attr-defined]
    return None if not path else Path(getattr(path, "name", path))


def on_save(config: pytest.Config, told: Callable[[Path], None]) -> None:
    """Call `told` with each file that pytest-benchmark's storage writes a run to."""
    storage = config._benchmarksession.storage  # type: ignore[attr-defined]
    save, folder = storage.save, storage_path(config)

    def save_and_tell(output_json: Any, name: str) -> None:
        before = set(folder.glob("*.json")) if folder else set()
        save(output_json, name)
        for path in sorted(set(folder.glob("*.json")) - before) if folder else []:
            told(path)

    storage.save = save_and_tell
