"""The one adapter to pytest-benchmark: every private name of it that Bitgate uses is here.

pytest-benchmark switches itself off as soon as xdist is active. Here workers measure, each record
travels to the controller, and the controller's own session saves, compares and prints: once, by
pytest-benchmark's own code. Held by pytest-benchmark >= 5.3.1, < 6, and by
tests/unit/test_benchmark_adapter.py.
"""

from __future__ import annotations

import pstats
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture, FixtureAlreadyUsed

from bitgate.plugin import distribution


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


def refuse_without_it(config: pytest.Config) -> None:
    """Without pytest-benchmark nothing here works."""
    if not hasattr(config.option, "benchmark_only"):
        raise pytest.UsageError(
            "bitgate needs pytest-benchmark, which is switched off: leave out -p no:benchmark, or "
            "with PYTEST_DISABLE_PLUGIN_AUTOLOAD add -p pytest_benchmark.plugin"
        )


def refuse_to_draw(config: pytest.Config) -> None:
    """--benchmark-histogram without what it draws with: pytest-benchmark would crash on it, after
    everything is measured."""
    if config.getoption("benchmark_histogram", None) and find_spec("pygal") is None:
        raise pytest.UsageError(
            "--benchmark-histogram: pygal is not installed; "
            "pip install 'pytest-benchmark[histogram]'"
        )


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


def is_disabled(config: pytest.Config) -> bool:
    """Whether benchmarks run untimed."""
    return bool(config._benchmarksession.disabled)  # type: ignore[attr-defined]


def before_its_session(config: pytest.Config) -> None:
    """Before pytest-benchmark reads its options: leave bookkeeping to the controller, and hide
    --benchmark-only, which it refuses beside xdist, and beside --benchmark-disable rightly."""
    if not distribution.is_distributed(config):
        if hasattr(config.option, "dist"):  # as xdist has it where no worker is to be started
            config.option.dist = "no"
        return
    if distribution.is_worker(config):
        for name, value in BOOKKEEPING.items():
            setattr(config.option, name, value)
    if config.option.benchmark_disable and not config.option.benchmark_enable:
        return
    config.stash[ONLY] = config.option.benchmark_only
    config.option.benchmark_only = False


def switch_on(config: pytest.Config) -> None:
    """After pytest-benchmark has switched itself off because of xdist."""
    if ONLY not in config.stash:
        return
    session = config._benchmarksession  # type: ignore[attr-defined]
    session.disabled = False
    session.xdist_warning = False
    session.only = config.option.benchmark_only = config.stash[ONLY]
    if session.only:
        session.skip = False


def switch_off(config: pytest.Config) -> None:
    """At the end of a worker: its records are gone to the controller, nothing is left to save."""
    config._benchmarksession.disabled = True  # type: ignore[attr-defined]


def pack(item: pytest.Item) -> dict[str, Any] | None:
    """The record of an item as JSON can hold it, or None if it has none. A worker keeps none."""
    session = item.config._benchmarksession  # type: ignore[attr-defined]
    # the newest is last, if this item has one at all
    record = session.benchmarks[-1] if session.benchmarks else None
    if distribution.is_worker(item.config):
        session.benchmarks.clear()
    if record is None or record.fullname != item.nodeid:
        return None
    return {
        **record.as_dict(include_data=False, stats=False),
        "cprofile": _pack_profile(record.cprofile_stats),
        "iterations": record.iterations,
        "has_error": record.has_error,
        "data": record.stats.data,
    }


def enter(config: pytest.Config, packed: dict[str, Any]) -> None:
    """A record that another process has measured, into this process' session."""
    config._benchmarksession.benchmarks.append(rebuild(packed))  # type: ignore[attr-defined]


def has(config: pytest.Config, fullname: str) -> bool:
    """Whether this process' session has a record of that test."""
    records = config._benchmarksession.benchmarks  # type: ignore[attr-defined]
    return any(record.fullname == fullname for record in records)


def rebuild(packed: dict[str, Any]) -> Any:
    """The record that was packed."""
    from pytest_benchmark.stats import Metadata

    fields = {**packed}
    data, iterations, options = (fields.pop(key) for key in ("data", "iterations", "options"))
    profile = _rebuild_profile(fields.pop("cprofile", None))
    record = Metadata(SimpleNamespace(cprofile_stats=profile, **fields), iterations, options)
    record.stats.data.extend(data)
    return record


def _pack_profile(stats: pstats.Stats | None) -> list[list[Any]] | None:
    """Of --benchmark-cprofile: for each function its file, line and name, then its primitive and
    all its calls, and seconds in itself and in all. Who called it pytest-benchmark does not say."""
    if stats is None:
        return None
    functions = stats.stats  # type: ignore[attr-defined]
    return [[*function, *numbers[:4]] for function, numbers in functions.items()]


def _rebuild_profile(packed: list[list[Any]] | None) -> Any:
    """As much of pstats.Stats as pytest-benchmark reads."""
    if packed is None:
        return None
    return SimpleNamespace(stats={tuple(row[:3]): (*row[3:], {}) for row in packed})


def amend(config: pytest.Config, changes: Mapping[str, dict[str, Any]]) -> None:
    """Change what the records of some tests, by node id, say of Bitgate's verdicts."""
    for record in config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
        if record.fullname in changes and "bitgate" in record.extra_info:
            record.extra_info["bitgate"].update(changes[record.fullname])


def forget_nothing_measured(config: pytest.Config) -> None:
    """A run that was ended before its first record has nothing to save; pytest-benchmark would save
    a file without benchmarks, since one had begun."""
    session = config._benchmarksession  # type: ignore[attr-defined]
    if all(record.has_error for record in session.benchmarks):
        session.benchmarks.clear()


def sort(config: pytest.Config, order: dict[str, int]) -> None:
    """Records in the order in which their tests were collected, whoever finished first."""
    session = config._benchmarksession  # type: ignore[attr-defined]
    session.benchmarks.sort(key=lambda record: order.get(record.fullname, len(order)))
