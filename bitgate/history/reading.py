"""Reading many saved runs, each by the rules of `saved`. A file that is not sound is left out and
named with the reason; it never ends the reading."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bitgate.catalog import Execution
from bitgate.history.points import History, Measured, Point, Run, Skipped
from bitgate.history.saved import RunError, read_content
from bitgate.history.schema import Record, Value
from bitgate.metric import Interval, Metric


class HistoryError(Exception):
    """There is no history to speak of; the message says where, why, and how to make one."""


def read(sources: Iterable[Path]) -> History:
    """All runs of folders (and of folders within) and files, by the time they were measured.

    A case that is in two files as measured at the same time (a run and one merged of it) counts
    once. Takes time in proportion to the size of the files.
    """
    history = History()
    measured: list[tuple[Run, list[Point]]] = []
    for path in _files(sources, history.skipped):
        try:
            run, points = _read(path)
        except RunError as error:
            why = str(error).removeprefix(str(path)).removeprefix(":").strip()
            history.skipped.append(Skipped(path, why))
        else:
            if points:
                measured.append((run, points))
    measured.sort(key=lambda one: (one[0].time, one[0].number or 0, one[0].name))
    seen: set[tuple[object, ...]] = set()
    for run, points in measured:
        cases = {id(p.of): (run.time, p.of.case, p.of.execution, p.of.host) for p in points}
        fresh = [point for point in points if cases[id(point.of)] not in seen]
        if not fresh:
            history.skipped.append(Skipped(run.path, "all of it is in another file, too"))
            continue
        seen.update(cases.values())
        history.runs.append(run)
        history.points.extend(fresh)
    return history


def history_of(sources: Sequence[Path]) -> History:
    """What `read` finds, or HistoryError if that is nothing at all."""
    history = read(sources)
    if history.runs:
        return history
    where = " and ".join(map(str, sources))
    reasons = "".join(f"\n  {skipped}" for skipped in history.skipped[:5])
    more = len(history.skipped) - 5
    reasons += f"\n  and {more} more" if more > 0 else ""
    raise HistoryError(
        f"no saved runs in {where}; `pytest bench --benchmark-autosave` (or `make bench`) makes "
        f"one{reasons}"
    )


def _files(sources: Iterable[Path], skipped: list[Skipped]) -> Iterator[Path]:
    for source in sources:
        if source.is_dir():
            yield from sorted(path for path in source.rglob("*.json") if path.is_file())
        elif source.exists():
            yield source
        else:
            skipped.append(Skipped(source, "there is no such file or folder"))


def _read(path: Path) -> tuple[Run, list[Point]]:
    """A run, and its points. RunError if it, or any record in it, is not sound."""
    saved, content = read_content(path)
    found = re.match(r"(\d+)_", path.name)
    run = Run(path, int(found[1]) if found else None, datetime.fromisoformat(saved.when))
    machines = _Machines(content)
    records = [record for same in saved.records.values() for record in same]
    return run, [point for record in records for point in _points(run, record, machines)]


def _points(run: Run, record: Record, machines: _Machines) -> list[Point]:
    recipe, workload, ran = record.recipe, record.workload, record.execution
    host = record.host or machines.first  # the first runs did not record it
    measured = Measured(
        run=run,
        case=record.case,
        commit=record.commit or machines.commit,
        model=record.model,
        recipe=str(recipe.get("name", "")),
        method=str(recipe.get("method", "")),
        bits=recipe.get("bits"),
        group_size=recipe.get("group_size"),
        workload=f"{workload.get('kind', record.kind)} {workload.get('name', '')}".strip(),
        protocol=json.dumps(workload, sort_keys=True),
        execution=Execution(ran.device, ran.dtype, ran.threads, ran.kernel, ran.compiled),
        host=host,
        hardware=machines.hardware(host),
        versions=record.versions,
    )
    outcomes = {verdict.get("metric"): str(verdict.get("outcome")) for verdict in record.verdicts}
    return [
        Point(measured, _metric(name, value), value.unit, value.better, outcome)
        for name, value in record.metrics.items()
        for outcome in [outcomes.get(name, "recorded")]
    ]


def _metric(name: str, value: Value) -> Metric:
    interval = None if value.bounds is None else Interval(**value.bounds.model_dump())
    return Metric(name, value.value, interval, value.expected)


class _Machines:
    """The hardware of each host of a run, and the commit as pytest-benchmark has it."""

    def __init__(self, content: dict[str, Any]) -> None:
        try:
            merged = content.get("bitgate", {}).get("machines") or []
            infos = [content.get("machine_info"), *(one.get("machine_info") for one in merged)]
        except AttributeError:
            infos = []
        self._hardware = {
            info.get("node"): _hardware(info) for info in infos if isinstance(info, dict)
        }
        #: the host that saved the run
        self.first = str(infos[0].get("node") if infos and isinstance(infos[0], dict) else "")
        info = content.get("commit_info")
        found = info.get("id") if isinstance(info, dict) else None
        dirty = isinstance(info, dict) and info.get("dirty")
        self.commit: str | None = f"{found}{'+' if dirty else ''}" if found else None

    def hardware(self, host: str) -> str:
        """Empty if nobody has recorded it."""
        return self._hardware.get(host, "")


def _hardware(info: dict[str, Any]) -> str:
    cpu = info.get("cpu")
    cpu = cpu if isinstance(cpu, dict) else {}
    count = cpu.get("count")
    return f"{count} x {cpu.get('brand_raw')}" if count else str(cpu.get("brand_raw") or "")
