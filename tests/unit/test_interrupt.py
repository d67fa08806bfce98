"""An interrupt after a case was measured, at its most awkward moments, loses nothing of it."""

from __future__ import annotations

import json

import pytest

pytest_plugins = ["pytester"]

#: a hook implementation that interrupts the first case
MOMENTS = {
    "while the report of the test function is passed on": """
@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.when == "call":
        raise KeyboardInterrupt
""",
    "in its teardown": """
def pytest_runtest_teardown(item):
    raise KeyboardInterrupt
""",
    "while the report of its teardown is passed on": """
@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.when == "teardown" and not report.interrupted:
        report.__class__.interrupted = True
        raise KeyboardInterrupt

pytest.TestReport.interrupted = False
""",
}


def test_it_may_come_between_lines(pytester):
    """The exit status is that of an interrupt, where an instruction without a line was interrupted:
    pytest itself ends with a TypeError."""
    pytester.makepyfile(
        """
        def test_it():
            code = compile("raise KeyboardInterrupt", "nowhere", "exec")
            exec(code.replace(co_linetable=b""))
        """
    )
    result = pytester.runpytest_subprocess("-p", "bitgate.plugin")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    result.stderr.no_fnmatch_line("*TypeError*")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_is_saved_and_resumed(free_project, pytester, moment):
    free_project(pytester.path)
    conftest = pytester.path / "conftest.py"
    original = conftest.read_text()
    conftest.write_text(original + MOMENTS[moment])
    done = pytester.runpytest_subprocess("bench", "-n", "0", "--benchmark-json=run.json")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    (measured,) = json.loads((pytester.path / "run.json").read_text())["benchmarks"]
    assert measured["extra_info"]["bitgate"]["outcome"] == "pass"
    done.stdout.fnmatch_lines(["3 tests did not finish: --resume runs them*"])
    conftest.write_text(original)
    resumed = pytester.runpytest_subprocess(
        "bench", "-n", "0", "--resume", "--benchmark-json=whole.json"
    )
    resumed.assert_outcomes(passed=3)
    benchmarks = json.loads((pytester.path / "whole.json").read_text())["benchmarks"]
    assert len(benchmarks) == 4
    assert measured in benchmarks


@pytest.mark.slow
def test_what_was_not_measured_whole_is_measured_again(free_project, pytester):
    free_project(pytester.path)
    conftest = pytester.path / "conftest.py"
    original = conftest.read_text()
    conftest.write_text(
        f"{original}\ndef pytest_runtest_call(item):\n    raise KeyboardInterrupt\n"
    )
    done = pytester.runpytest_subprocess("bench", "-n", "0")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    conftest.write_text(original)
    pytester.runpytest_subprocess("bench", "-n", "0", "--resume").assert_outcomes(passed=4)


HALF_ENTERED = """
import sys
from bitgate.plugin import parcel

@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    enter = parcel.enter
    def interrupted(*arguments, **options):
        parcel.enter = enter
        print("numpy is there:", "numpy" in sys.modules)
        raise KeyboardInterrupt
    if not hasattr(config, "workerinput"):
        parcel.enter = interrupted
"""


def test_what_a_worker_has_sent_is_entered(free_project, pytester):
    """Also when the interrupt comes after it was put into the journal, and before it was entered;
    and the first import of numpy, which would be broken for good, is no such moment."""
    free_project(pytester.path)
    with (pytester.path / "conftest.py").open("a") as file:
        file.write(HALF_ENTERED)
    done = pytester.runpytest_subprocess(
        "bench", "-n", "1", "-s", "-k", "quantize", "--benchmark-json=run.json"
    )
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines(["*numpy is there: True", "*tests did not finish: --resume runs*"])
    saved = json.loads((pytester.path / "run.json").read_text())
    measured = {b["extra_info"]["bitgate"]["case"] for b in saved["benchmarks"]}
    journal = (pytester.path / ".benchmarks" / "unfinished.jsonl").read_text().splitlines()[1:]
    kept = {json.loads(line)["result"]["case"] for line in journal}
    assert measured == kept != set()
    assert measured.isdisjoint(one["case"] for one in saved["bitgate"]["absent"])
