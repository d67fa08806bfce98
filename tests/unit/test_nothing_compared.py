"""`--against` where a run lacks what its reference has: comparing nothing is not green."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CASES = ("quantize[llama-free-hqq-w4g64]", "perplexity[llama-free-hqq-w4g64-words]")
LACKING = """
from bitgate.quantize import Extra, hqq
hqq.EXTRA = Extra("quick", ("no_such_module",))
"""


@pytest.fixture
def run(free_project, pytester, runs):
    """Runs a project whose only saved run has two of its four cases."""
    free_project(pytester.path)
    runs.folder = pytester.path / ".benchmarks" / "machine"
    # the newest run lacks what an older one has
    runs.save(runs.sizes(case=CASES[0], packed_layers=7))
    runs.save(runs.sizes(case=CASES[1], packed_layers=7))
    (pytester.path / "bench" / "test_plain.py").write_text("def test_plain(): pass\n")
    pytester.makepyfile(lacking=LACKING)
    against = ("bench", "-n", "0", "--threads=1", "--against=latest", "-p", "no:cacheprovider")
    return lambda *arguments: pytester.runpytest_subprocess(*against, *arguments)


@pytest.mark.parametrize("why", [["--benchmark-skip"], ["-p", "lacking"]])
def test_cases_that_the_reference_has_and_the_run_lacks(run, why):
    red = run("--fail-inconclusive", *why)
    assert red.ret == pytest.ExitCode.TESTS_FAILED
    red.stdout.fnmatch_lines(["*inconclusive: missing: * [[]against latest]*"])
    red.stdout.fnmatch_lines(["against latest: 2 missing", "  2 of its cases were not measured *"])
    assert red.parseoutcomes()["failed"] == 2
    green = run(*why)
    assert green.ret == pytest.ExitCode.OK
    green.stdout.fnmatch_lines(["against latest: 2 missing"])


def test_nothing_at_all_was_compared(run):
    red = run("--fail-inconclusive", "-k", "plain")
    assert red.ret == pytest.ExitCode.TESTS_FAILED
    red.stdout.fnmatch_lines(["--against: nothing was compared, which --fail-inconclusive makes*"])
    assert run("-k", "plain").ret == pytest.ExitCode.OK
