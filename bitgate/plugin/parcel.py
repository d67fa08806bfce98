"""What a finished case sends to whoever keeps the books.

It travels on the case's own teardown report, in every mode: a worker that dies later takes
nothing of it along, and one process does what many do.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from bitgate.history.record import Result
from bitgate.history.schema import Record
from bitgate.plugin import benchmark
from bitgate.plugin.session import RESULT, SESSION, Session

PROPERTY = "_bitgate_case"  #: of the report; it is taken off again before anyone else looks

#: of an item whose test function has ended, with a report
CALLED = pytest.StashKey[bool]()


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


def rescue(item: pytest.Item) -> None:
    """Send what an item measured although it was interrupted, if only its teardown is lacking."""
    if item.stash.get(CALLED, False):
        report = pytest.TestReport(item.nodeid, item.location, {}, "passed", None, "teardown")
        attach(item, report)
        item.ihook.pytest_runtest_logreport(report=report)


def take(report: pytest.TestReport) -> dict[str, Any] | None:
    """The parcel of a report, if it has one; it has none afterwards."""
    found = [value for name, value in report.user_properties if name == PROPERTY]
    report.user_properties[:] = [p for p in report.user_properties if p[0] != PROPERTY]
    if not found:
        return None
    parcel: dict[str, Any] = json.loads(str(found[0]))
    return parcel


def check(session: Session, parcel: dict[str, Any]) -> None:
    """That it can be entered, compared and saved; any error that a broken parcel leads to if it
    cannot."""
    if (result := parcel["result"]) is not None:
        entered = Result.of_parcel(session.due[result["case"]], result)
        if entered.execution is not None:
            Record.model_validate(entered.record())
    if parcel["benchmark"] is not None:
        # pytest-benchmark counts only what it needs, when it is saved
        benchmark.rebuild(parcel["benchmark"]).as_dict()


def prepare() -> None:
    """Import what `enter` needs, before anything arrives: an interrupt in the middle of a first
    import of numpy would end all later ones."""
    import numpy as np  # noqa: F401


def enter(config: pytest.Config, parcel: dict[str, Any], *, here: bool) -> None:
    """Into the books; `here` says that pytest-benchmark has measured it in this process. What an
    interrupt has cut short may be entered again."""
    session, result = config.stash.get(SESSION, None), parcel["result"]
    if session is not None and result is not None:
        case = session.due[result["case"]]
        session.results[parcel["nodeid"]] = Result.of_parcel(case, result)
    record = parcel["benchmark"]
    if not here and record is not None and not benchmark.has(config, record["fullname"]):
        benchmark.enter(config, record)
