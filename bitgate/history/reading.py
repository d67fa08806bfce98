"""Reading saved runs. A file that cannot be read is left out and named with the reason; it never
ends the reading."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitgate.catalog import Execution
from bitgate.history.points import History, Measured, Point, Run, Skipped
from bitgate.history.record import SCHEMA
from bitgate.metric import Metric


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
            run, points, left_out = _read(path)
        except _RefusedError as error:
            left_out = [str(error)]
        else:
            if points:
                measured.append((run, points))
        history.skipped.extend(Skipped(path, reason) for reason in left_out)
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


def _read(path: Path) -> tuple[Run, list[Point], list[str]]:
    """A run, its points, and why others of its records are left out."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _RefusedError(f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise _RefusedError(f"no whole JSON file: {error}") from None
    try:
        records = [
            benchmark["extra_info"]["bitgate"]
            for benchmark in content["benchmarks"]
            if "bitgate" in benchmark["extra_info"]
        ]
        time = datetime.fromisoformat(content["datetime"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _RefusedError("no run that pytest-benchmark has saved") from None
    if not records:
        raise _RefusedError("holds no records of Bitgate: was it made by its benchmarks?")
    time = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    found = re.match(r"(\d+)_", path.name)
    run = Run(path, int(found[1]) if found else None, time)
    machines = _Machines(content)
    points: list[Point] = []
    refused: dict[str, int] = {}
    for record in records:
        try:
            points += _points(run, record, machines)
        except _RefusedError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else f"damaged: {error}"
            refused[why] = refused.get(why, 0) + 1
    left_out = [
        f"{_share(count, len(records))} records left out: {why}" for why, count in refused.items()
    ]
    return run, points, left_out


def _share(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"{count} of {total}"


class _RefusedError(Exception):
    """Why a file, or a record in it, is left out."""


_EXECUTION = tuple(f.name for f in fields(Execution))


def _points(run: Run, record: dict[str, Any], machines: _Machines) -> list[Point]:
    if record["schema"] != SCHEMA:
        raise _RefusedError(f"schema {record['schema']}, this version reads {SCHEMA}")
    recipe, workload, execution = record["recipe"], record["workload"], record["execution"]
    host = str(record.get("host") or machines.first)  # the first runs did not record it
    measured = Measured(
        run=run,
        case=str(record["case"]),
        commit=record.get("commit") or machines.commit,
        model=str(record["model"]),
        recipe=str(recipe["name"]),
        method=str(recipe.get("method", "")),
        bits=recipe.get("bits"),
        group_size=recipe.get("group_size"),
        workload=f"{workload['kind']} {workload['name']}".strip(),
        protocol=json.dumps(workload, sort_keys=True),
        execution=Execution(**{key: execution[key] for key in _EXECUTION if key in execution}),
        host=host,
        hardware=machines.hardware(host),
        versions=dict(record.get("versions") or {}),
    )
    outcomes = {v["metric"]: str(v["outcome"]) for v in record["verdicts"]}
    points = []
    for name, recorded in record["metrics"].items():
        metric = Metric.of_record(name, recorded)
        for number in (metric.value, metric.low, metric.high):
            if not isinstance(number, int | float):
                raise TypeError(f"{name} is {number!r}, no number")
        outcome = outcomes.get(name, "recorded")
        points.append(Point(measured, metric, recorded["unit"], recorded["better"], outcome))
    return points


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
