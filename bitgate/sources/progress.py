"""Progress of downloads and conversions, reported to whoever is listening.

    with track("model smollm2: download", total=98_362_432, unit="B") as task:
        for block in blocks:
            task.advance(len(block))

By default a bar appears on a terminal and an occasional line elsewhere; `reporting_to` sends the
reports somewhere else, for example to the terminal reporter of a test runner.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


@dataclass(frozen=True)
class Report:
    """How far something has come."""

    label: str
    done: int = 0
    total: int | None = None  #: None while nobody knows
    unit: str = ""  #: `B` for bytes, otherwise a word for what is counted
    finished: bool = False  #: the last report of this label, also after a failure

    def __str__(self) -> str:
        if not self.done and self.total is None:
            return self.label
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        return f"{self.label}: {_amount(self.done, self.unit)}{share}"


Progress = Callable[[Report], None]


class Task:
    """One thing being worked on; it reports itself whenever it advances."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, 0

    def advance(self, amount: int = 1) -> None:
        self.update(self.done + amount)

    def update(self, done: int, total: int | None = None) -> None:
        self.done = done
        self.total = total or self.total
        self.report()

    def report(self, finished: bool = False) -> None:
        _listener(Report(self.label, self.done, self.total, self.unit, finished))


@contextmanager
def track(label: str, total: int | None = None, unit: str = "") -> Iterator[Task]:
    """Report the work inside, from its first moment to its end."""
    task = Task(label, total, unit)
    task.report()
    try:
        yield task
    finally:
        task.report(finished=True)


@contextmanager
def reporting_to(progress: Progress) -> Iterator[None]:
    """Send every report made inside, by any thread, to `progress`."""
    previous = set_progress(progress)
    try:
        yield
    finally:
        set_progress(previous)


def set_progress(progress: Progress) -> Progress:
    """Send all reports of this process to `progress`; returns the listener that it replaces."""
    global _listener
    previous, _listener = _listener, progress
    return previous


@dataclass
class Lines:
    """Writes a line at the start, the end, and every 10 % or 10 seconds between: for logs."""

    write: Callable[[str], object]
    clock: Callable[[], float] = time.monotonic
    _last: dict[str, tuple[int, float]] = field(default_factory=dict)

    def __call__(self, report: Report) -> None:
        tenth = 10 * report.done // report.total if report.total else 0
        now = self.clock()
        last = self._last.get(report.label)
        if last is None or tenth > last[0] or now - last[1] >= 10:
            self._last[report.label] = tenth, now
            self.write(str(report))
        if report.finished:
            self._last.pop(report.label, None)


class Bars:
    """Draws one bar per task on a terminal, gone when the task is."""

    def __init__(self) -> None:
        self._bars: dict[str, tuple[rich.progress.Progress, rich.progress.TaskID]] = {}

    def __call__(self, report: Report) -> None:
        if report.finished:
            if report.label in self._bars:
                self._bars.pop(report.label)[0].stop()
            return
        if report.label not in self._bars:
            self._bars[report.label] = self._start(report)
        bar, task = self._bars[report.label]
        bar.update(task, completed=report.done, total=report.total)

    @staticmethod
    def _start(report: Report) -> tuple[rich.progress.Progress, rich.progress.TaskID]:
        from rich import progress
        from rich.console import Console

        count = progress.DownloadColumn() if report.unit == "B" else progress.MofNCompleteColumn()
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            count,
            progress.TimeRemainingColumn(),
        )
        bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        bar.start()
        return bar, bar.add_task(report.label, total=report.total)


class _Default:
    """Bars on a terminal, lines elsewhere; decided at the first report, when stderr is settled."""

    def __init__(self) -> None:
        self._chosen: Progress | None = None

    def __call__(self, report: Report) -> None:
        if self._chosen is None:
            self._chosen = Bars() if sys.stderr.isatty() else Lines(_write_line)
        self._chosen(report)


def _write_line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _amount(count: int, unit: str) -> str:
    return f"{count / 2**20:.1f} MiB" if unit == "B" else f"{count} {unit}".rstrip()


_listener: Progress = _Default()
