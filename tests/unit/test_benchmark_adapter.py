"""Every private name of pytest-benchmark that the adapter uses, in a real session: an upgrade that
moves one is seen here."""

from __future__ import annotations

import json

pytest_plugins = ["pytester"]

INNER = """
import pytest
from pytest_benchmark.fixture import FixtureAlreadyUsed
from bitgate.plugin import benchmark as adapter

def test_rounds(benchmark, request):
    with adapter.Rounds(benchmark) as rounds:
        rounds.add([0.25, 0.5])
        rounds.add([1.0])
    benchmark.extra_info["mark"] = "kept"
    if benchmark.enabled:
        assert benchmark.stats.stats.data == [0.25, 0.5, 1.0]

def test_before_another_use(benchmark):
    with adapter.Rounds(benchmark) as rounds:
        rounds.add([1.0])
    with pytest.raises(FixtureAlreadyUsed, match="gate.decide"):
        benchmark(lambda: None)

def test_after_another_use(benchmark):
    benchmark.pedantic(lambda: None)
    with pytest.raises(FixtureAlreadyUsed, match="pedantic"):
        with adapter.Rounds(benchmark):
            pass

def test_without_rounds(benchmark):
    with adapter.Rounds(benchmark):
        pass

def test_crash(benchmark):
    with adapter.Rounds(benchmark) as rounds:
        rounds.add([1.0])
        raise RuntimeError("measured wrongly")

def test_places(request):
    assert adapter.storage_path(request.config).parent.name == ".benchmarks"
    assert adapter.json_path(request.config).name == "run.json"
"""

PLUGIN = """
from bitgate.plugin import benchmark as adapter

def pytest_sessionstart(session):
    adapter.on_save(session.config, lambda path: print(f"\\ntold of {path.name}"))
"""


def test_names_in_a_real_session(pytester):
    pytester.makepyfile(test_inner=INNER)
    pytester.makeconftest(PLUGIN)
    done = pytester.runpytest_subprocess("--benchmark-autosave", "--benchmark-json=run.json", "-s")
    done.assert_outcomes(passed=5, failed=1)
    done.stdout.fnmatch_lines(["*told of 0001_*.json"])
    saved = json.loads((pytester.path / "run.json").read_text())["benchmarks"]
    # neither a crash nor no rounds leave a record, and a misuse spoils its own
    assert [b["name"] for b in saved] == ["test_rounds"]
    assert saved[0]["stats"]["data"] == [0.25, 0.5, 1.0]
    assert saved[0]["extra_info"] == {"mark": "kept"}


def test_disabled(pytester):
    pytester.makepyfile(test_inner=INNER)
    done = pytester.runpytest_subprocess("--benchmark-disable", "-k", "rounds and not without")
    done.assert_outcomes(passed=1, deselected=5)


def test_workers_are_counted_and_told_before_they_start(pytester):
    pytester.makeconftest(
        "import pytest\n"
        "from bitgate.plugin import benchmark as adapter\n"
        "@pytest.hookimpl(optionalhook=True)\n"
        "def pytest_configure_node(node):\n"
        '    adapter.tell_finished(node, [f"of {adapter.workers(node.config)} workers"])\n'
    )
    pytester.makepyfile(
        "from bitgate.plugin import benchmark as adapter\n"
        "def test_told(request):\n"
        '    assert adapter.finished_before(request.config) == ["of 2 workers"]\n'
        "    assert adapter.is_disabled(request.config)  # as nothing has switched it on\n"
    )
    pytester.runpytest_subprocess("-n", "2").assert_outcomes(passed=1)
    pytester.makeconftest("")
    pytester.makepyfile(
        "from bitgate.plugin import benchmark as adapter\n"
        "def test_alone(request):\n"
        "    assert adapter.finished_before(request.config) == []\n"
        "    assert adapter.workers(request.config) == 1\n"
        "    assert not adapter.is_disabled(request.config)\n"
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
