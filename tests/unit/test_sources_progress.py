"""Progress goes to whoever listens; on no terminal it is an occasional line."""

import pytest

from bitgate.sources.progress import Bars, Lines, Report, reporting_to, track


def test_reports_start_advance_and_end():
    seen: list[Report] = []
    with reporting_to(seen.append), track("x", total=10, unit="B") as task:
        task.advance(4)
        task.update(10)
    assert [(report.done, report.finished) for report in seen] == [
        (0, False),
        (4, False),
        (10, False),
        (10, True),
    ]


def test_a_failure_ends_the_task():
    seen: list[Report] = []
    with pytest.raises(ValueError), reporting_to(seen.append), track("x"):
        raise ValueError
    assert seen[-1].finished


def test_lines_come_every_tenth_or_ten_seconds():
    now = [0.0]
    written: list[str] = []
    lines = Lines(written.append, clock=lambda: now[0])
    for done in range(101):
        lines(Report("x", done, 100, "things"))
    assert len(written) == 11
    assert written[-1] == "x: 100 things (100 %)"
    now[0] = 11
    lines(Report("x", 100, 100, "things"))
    assert len(written) == 12


def test_bars_draw_and_go_away(capsys):
    bars = Bars()
    with reporting_to(bars), track("x", total=2**20, unit="B") as task:
        task.advance(2**19)
    assert bars._bars == {}
