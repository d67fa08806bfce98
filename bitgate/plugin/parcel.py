"""What a finished case sends to whoever keeps the books.

It travels on the case's own teardown report, in every mode: a worker that dies later takes
nothing of it along, and one process does what many do.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from bitgate.history.record import Result
from bitgate.plugin import benchmark
from bitgate.plugin.session import RESULT, SESSION, Session

PROPERTY = "_bitgate_case"  #: of the report; it is taken off again before anyone else looks


def attach(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put what this item measured on its report, once everything about it is known."""
    result = item.stash.get(RESULT, None)
    record = benchmark.pack(item)
    if result is None and record is None:
        return
    parcel = {
        "nodeid": item.nodeid,
        "result": None if result is None else result.parcel(),
        "benchmark": record,
    }
    report.user_properties.append((PROPERTY, json.dumps(parcel, default=str)))


def take(report: pytest.TestReport) -> dict[str, Any] | None:
    """The parcel of a report, if it has one; it has none afterwards."""
    found = [value for name, value in report.user_properties if name == PROPERTY]
    report.user_properties[:] = [p for p in report.user_properties if p[0] != PROPERTY]
    if not found:
        return None
    parcel: dict[str, Any] = json.loads(str(found[0]))
    return parcel


def check(session: Session, parcel: dict[str, Any]) -> None:
    """That `enter` will take it; any error that a broken parcel leads to if it will not."""
    if (result := parcel["result"]) is not None:
        Result.of_parcel(session.due[result["case"]], result)
    if parcel["benchmark"] is not None:
        benchmark.rebuild(parcel["benchmark"])


def enter(config: pytest.Config, parcel: dict[str, Any], *, here: bool) -> None:
    """Into the books; `here` says that pytest-benchmark has measured it in this process."""
    session, result = config.stash.get(SESSION, None), parcel["result"]
    if session is not None and result is not None:
        case = session.due[result["case"]]
        session.results[parcel["nodeid"]] = Result.of_parcel(case, result)
    if not here and parcel["benchmark"] is not None:
        benchmark.enter(config, parcel["benchmark"])
