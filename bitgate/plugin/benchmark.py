"""The one adapter to pytest-benchmark and xdist: every private name of them that Bitgate uses is
here.

pytest-benchmark switches itself off as soon as xdist is active. Here workers measure, each record
travels to the controller, and the controller's own session saves, compares and prints: once, by
pytest-benchmark's own code. Held by pytest-benchmark >= 5.3.1, < 6, and by
tests/unit/test_benchmark_adapter.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
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
    path = config._benchmarksession.json  # type: ignore[attr-defined]
    return Path(path) if path else None


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


# --- beside xdist --------------------------------------------------------------------------

#: what has to happen once, by the controller
BOOKKEEPING: dict[str, Any] = {
    "benchmark_save": None,
    "benchmark_autosave": None,
    "benchmark_json": None,
    "benchmark_compare": [],
    "benchmark_compare_fail": None,
    "benchmark_histogram": [],
}
ONLY = pytest.StashKey[bool]()


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def is_distributed(config: pytest.Config) -> bool:
    """Whether this is a worker or the controller of some."""
    return is_worker(config) or config.getoption("dist", "no") != "no"


def before_its_session(config: pytest.Config) -> None:
    """Before pytest-benchmark reads its options: leave bookkeeping to the controller, and hide
    --benchmark-only, which it refuses beside xdist."""
    if not is_distributed(config) or not hasattr(config.option, "benchmark_only"):
        return
    if is_worker(config):
        for name, value in BOOKKEEPING.items():
            setattr(config.option, name, value)
    config.stash[ONLY] = config.option.benchmark_only
    config.option.benchmark_only = False


def switch_on(config: pytest.Config) -> None:
    """After pytest-benchmark has switched itself off because of xdist."""
    if ONLY not in config.stash:
        return
    session = config._benchmarksession  # type: ignore[attr-defined]
    session.disabled = config.option.benchmark_disable and not config.option.benchmark_enable
    session.xdist_warning = False
    session.only = config.option.benchmark_only = config.stash[ONLY]
    if session.only:
        session.skip = False


def switch_off(config: pytest.Config) -> None:
    """At the end of a worker: its records are gone to the controller, there is nothing to save."""
    config._benchmarksession.disabled = True  # type: ignore[attr-defined]


def pack(item: pytest.Item) -> dict[str, Any] | None:
    """The record of an item as JSON can hold it, or None if it has none. A worker keeps none."""
    session = item.config._benchmarksession  # type: ignore[attr-defined]
    found = [record for record in session.benchmarks if record.fullname == item.nodeid]
    if is_worker(item.config):
        session.benchmarks.clear()
    if not found:
        return None
    record = found[-1]
    return {
        **record.as_dict(include_data=False, stats=False),
        "iterations": record.iterations,
        "has_error": record.has_error,
        "data": record.stats.data,
    }


def enter(config: pytest.Config, packed: dict[str, Any]) -> None:
    """A record that another process has measured, into this process' session."""
    from pytest_benchmark.stats import Metadata

    fields = {**packed}
    data, iterations, options = (fields.pop(key) for key in ("data", "iterations", "options"))
    fields.pop("cprofile", None)
    record = Metadata(SimpleNamespace(cprofile_stats=None, **fields), iterations, options)
    record.stats.data.extend(data)
    config._benchmarksession.benchmarks.append(record)  # type: ignore[attr-defined]


def sort(config: pytest.Config, order: dict[str, int]) -> None:
    """Records in the order in which their tests were collected, whoever finished first."""
    session = config._benchmarksession  # type: ignore[attr-defined]
    session.benchmarks.sort(key=lambda record: order.get(record.fullname, len(order)))


def stealing_scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist's scheduler that gives each worker a block of consecutive tests, and lets those who
    are done early take from the others' ends."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
