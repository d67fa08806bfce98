"""The scheduler of cells in real xdist sessions: it overrides xdist's work stealing, whose inner
workings an upgrade may change."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import os
import re

from bitgate.plugin import distribution
from bitgate.plugin.placement import Job, Placement

def pytest_xdist_make_scheduler(config, log):
    return distribution.cell_scheduler(config, log, lambda ids: Placement([job(id) for id in ids]))

def job(nodeid):
    cell, cost = re.search(r"\\[([a-z]+)(\\d+)-", nodeid).groups()
    return Job(cell + cost, "model", cost=float(cost))

def pytest_runtest_call(item):
    with open("ran.txt", "a") as file:
        file.write(f"{os.environ.get('PYTEST_XDIST_WORKER')} {item.callspec.id}\\n")
"""
TESTS = """
import os, signal, time
import pytest

@pytest.mark.parametrize("part", range({parts}))
@pytest.mark.parametrize("cell", {cells!r})
def test_it(cell, part):
    time.sleep(0.02)
    {body}
"""
CELLS = ["a1", "b5", "c3", "d9", "e7"]


@pytest.fixture
def run(pytester):
    """Runs every part of every cell; gives the result and, in order, who ran what."""

    def run(*arguments, cells=tuple(CELLS), parts=3, body=""):
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(test_it=TESTS.format(cells=list(cells), parts=parts, body=body))
        done = pytester.runpytest_subprocess(*arguments, timeout=120)
        assert "INTERNALERROR" not in done.stdout.str() + done.stderr.str()
        path = pytester.path / "ran.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return done, [tuple(line.split()) for line in lines]

    return run


def every(cells=CELLS, parts=3):
    return sorted(f"{cell}-{part}" for cell in cells for part in range(parts))


def cell_of(test):
    return test.partition("-")[0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_cells_run_whole_once_and_dear_ones_first(run, workers):
    done, ran = run("-n", workers, "-v")
    assert done.ret == 0
    done.assert_outcomes(passed=15)
    done.stdout.fnmatch_lines(["scheduling tests via CellScheduling"])
    assert sorted(test for _, test in ran) == every()
    by_worker = {}
    for worker, test in ran:
        by_worker.setdefault(worker, []).append(test)
    assert len(by_worker) == int(workers)
    for tests in by_worker.values():
        cells = list(dict.fromkeys(map(cell_of, tests)))
        assert tests == [f"{cell}-{part}" for cell in cells for part in range(3)]
        assert cells == sorted(cells, key=lambda cell: -int(cell[1:]))


def test_a_killed_worker_costs_its_own_test(run):
    dies = 'if (cell, part) == ("d9", 1): os.kill(os.getpid(), signal.SIGKILL)'
    done, ran = run("-n", "2", body=dies, parts=4)
    assert done.ret == 1
    done.assert_outcomes(passed=19, failed=1)
    done.stdout.fnmatch_lines(["*crashed while running*test_it?d9-1?*"])
    assert sorted(test for _, test in ran) == every(parts=4)  # none twice, not even the one lost
    who = {test: worker for worker, test in ran}
    assert who["d9-0"] == who["d9-1"]
    assert who["d9-2"] == who["d9-3"]  # what is left of the cell stays together
    assert who["d9-2"] != who["d9-1"]


def test_a_worker_that_is_not_replaced_ends_the_run(run):
    """As it does under xdist's own schedulers; what was given out is finished."""
    dies = 'if (cell, part) == ("d9", 0): os.kill(os.getpid(), signal.SIGKILL)'
    done, ran = run("-n", "2", "--max-worker-restart=0", body=dies)
    assert done.ret == 1
    done.stdout.fnmatch_lines(["*worker * crashed and worker restarting disabled*"])
    tests = [test for _, test in ran]
    assert len(tests) == len(set(tests))


def test_more_workers_than_cells(run):
    done, ran = run("-n", "3", cells=["a1"], parts=2)
    assert done.ret == 0
    done.assert_outcomes(passed=2)
    assert len({worker for worker, _ in ran}) == 1


def test_nothing_to_run(run):
    done, ran = run("-n", "2", "-k", "nothing")
    assert done.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert ran == []


@pytest.mark.parametrize(("option", "failures"), [("-x", 1), ("--maxfail=2", 2)])
def test_it_stops_when_enough_has_failed(run, option, failures):
    done, ran = run("-n", "2", option, body=f'assert cell != "d9" or part >= {failures}')
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines([f"*stopping after {failures} failures*"])
    tests = [test for _, test in ran]
    assert len(tests) == len(set(tests))
    assert [test for test in tests if cell_of(test) == "d9"] == every(["d9"], failures)
