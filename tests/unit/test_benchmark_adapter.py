"""Every private name of pytest-benchmark that its adapter uses, in real sessions: an upgrade that
moves one, or changes what it means, is seen here. Those of xdist are in test_distribution.py and
the files it names; no other module has any (test_private_names.py)."""

from __future__ import annotations

import json

import pytest

from bitgate.plugin import benchmark as adapter
from bitgate.plugin import distribution

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
    assert adapter.is_disabled(request.config) is not benchmark.enabled
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


# --- beside xdist --------------------------------------------------------------------------

PLAIN = """
import pytest
from bitgate.plugin.benchmark import Rounds

@pytest.mark.benchmark(group="some", min_rounds=3)
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_grouped(benchmark, seconds):
    benchmark.extra_info["more"] = {"list": [1, None, "é"], "number": 1 / 3}
    with Rounds(benchmark) as rounds:
        rounds.add([seconds, seconds / 2, seconds / 3])

def test_pedantic(benchmark):
    benchmark.pedantic(lambda: None, rounds=2, iterations=7)

def test_crash(benchmark):
    with Rounds(benchmark) as rounds:
        rounds.add([1.0])
        raise RuntimeError("measured wrongly")

def test_of_something_else():
    pass
"""
#: what two runs of the same thing do not share
OF_A_RUN = {"seconds", "waited", "datetime", "machine_info", "commit_info"}


def comparable(value):
    if isinstance(value, list):
        return [comparable(inner) for inner in value]
    if isinstance(value, dict):
        timed = {"stats"} if value.get("name") == "test_pedantic" else set()
        return {k: comparable(v) for k, v in value.items() if k not in OF_A_RUN | timed}
    return value


def test_workers_leave_what_one_process_leaves(free_project, pytester):
    """Records travel whole, and what has to happen once happens once."""
    free_project(pytester.path)
    (pytester.path / "bench" / "test_plain.py").write_text(PLAIN)
    left = []
    for workers in ("0", "2"):
        json_file = pytester.path / f"run{workers}.json"
        done = pytester.runpytest_subprocess(
            *("bench", "-n", workers, "--benchmark-only"),
            *(f"--benchmark-json={json_file}", f"--benchmark-save=of{workers}"),
        )
        done.assert_outcomes(passed=7, failed=1, skipped=1)  # the latter by --benchmark-only
        printed = done.stdout.str() + done.stderr.str()
        assert "automatically disabled" not in printed
        assert "Not saving anything" not in printed
        assert printed.count("Wrote benchmark data in") == 1
        assert printed.count("Saved benchmark data in") == 1
        (saved,) = pytester.path.glob(f".benchmarks/*/*_of{workers}.json")
        assert saved.with_suffix(".parquet").is_file()  # on_save was told of it
        left.append([comparable(json.loads(path.read_text())) for path in (json_file, saved)])
        pedantic = json.loads(json_file.read_text())["benchmarks"][2]
        assert pedantic["name"] == "test_pedantic"
        assert pedantic["stats"]["iterations"] == 7
        assert len(pedantic["stats"]["data"]) == 2
    assert left[0] == left[1]
    names = [benchmark["name"] for benchmark in left[0][0]["benchmarks"]]
    cells = ("llama-free-hqq-w4g64", "llama-free-hqq-w4g64-dequantize")
    assert names == [
        *("test_grouped[0.5]", "test_grouped[2.0]", "test_pedantic"),
        *(f"test_{kind}" for c in cells for kind in (f"quantize[{c}]", f"perplexity[{c}-words]")),
    ]


DISTRIBUTED = ("--dist=load", "--tx=2*popen")


def session(pytester, *arguments, prepared=True):
    """pytest-benchmark's own session, under these arguments."""
    config = pytester.parseconfig(*arguments)
    if prepared:
        adapter.before_its_session(config)
    config._do_configure()
    try:
        if prepared:
            adapter.switch_on(config)
        return config._benchmarksession
    finally:
        config._ensure_unconfigure()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--benchmark-only"],
        ["--benchmark-skip"],
        ["--benchmark-only", "--benchmark-skip"],
        ["--benchmark-disable"],
        ["--benchmark-disable", "--benchmark-enable"],
    ],
)
def test_it_is_switched_as_in_one_process(pytester, options):
    alone = session(pytester, *options, prepared=False)
    beside = session(pytester, *DISTRIBUTED, *options)
    switches = ("disabled", "only", "skip", "xdist_warning")
    assert [getattr(beside, n) for n in switches] == [getattr(alone, n) for n in switches]


def test_it_switches_itself_off_by_itself(pytester):
    """Without which the adapter would have nothing to do."""
    beside = session(pytester, *DISTRIBUTED, prepared=False)
    assert beside.disabled
    assert beside.xdist_warning
    with pytest.raises(pytest.UsageError, match="benchmark-only"):
        session(pytester, *DISTRIBUTED, "--benchmark-only", prepared=False)


def test_what_it_refuses_in_one_process_it_refuses_beside_xdist(pytester):
    refused = []
    for prepared in (False, True):
        arguments = ("--benchmark-only", "--benchmark-disable", *(DISTRIBUTED if prepared else ()))
        with pytest.raises(pytest.UsageError) as error:
            session(pytester, *arguments, prepared=prepared)
        refused.append(str(error.value))
    assert refused[0] == refused[1]


def test_a_way_to_distribute_starts_no_workers(pytester):
    """So pytest-benchmark is not to be off, which it is by itself."""
    assert session(pytester, "--dist=load", prepared=False).disabled
    alone = session(pytester, "--dist=load", "--benchmark-only")
    assert not alone.disabled
    assert alone.only
    assert not distribution.is_distributed(pytester.parseconfig("--dist=load"))
    assert distribution.is_distributed(pytester.parseconfig(*DISTRIBUTED))


def test_without_pytest_benchmark(pytester):
    done = pytester.runpytest_subprocess("-p", "bitgate.plugin", "-p", "no:benchmark")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: bitgate needs pytest-benchmark*-p no:benchmark*"])
    assert "Traceback" not in done.stdout.str() + done.stderr.str()


PROFILED = """
def twice(number):
    return number and abs(number) + twice(number - 1)

def test_profiled(benchmark):
    benchmark.pedantic(twice, args=[3])
"""


def test_profiles_travel(pytester):
    """What pytest-benchmark prints of a profile and saves is the same, apart from times."""
    pytester.makepyfile(test_it=PROFILED)
    left = []
    for workers in ("0", "1"):
        done = pytester.runpytest_subprocess(
            *("-p", "bitgate.plugin", "-n", workers, "--benchmark-json=run.json"),
            *("--benchmark-cprofile=ncalls", "--benchmark-cprofile-dump=profile"),
        )
        done.assert_outcomes(passed=1)
        done.stdout.fnmatch_lines(["*cProfile (time in s)*", "test_it.py::test_profiled"])
        done.stdout.fnmatch_lines(["4/1\t*test_it.py:*(twice)"])
        (record,) = json.loads((pytester.path / "run.json").read_text())["benchmarks"]
        times = {"tottime", "tottime_per", "cumtime", "cumtime_per"}
        assert all(times < function.keys() for function in record["cprofile"])
        left.append(
            {
                function["function_name"]: (function["ncalls"], function["ncalls_recursion"])
                for function in record["cprofile"]
            }
        )
        (dump,) = pytester.path.glob("profile-*.prof")
        dump.unlink()
    assert left[0] == left[1]
    assert any("abs" in name for name in left[0])


@pytest.mark.filterwarnings("ignore:Can't compare")
def test_a_worker_leaves_bookkeeping_alone(pytester, monkeypatch):
    asked = [
        *("--benchmark-save=some", "--benchmark-autosave", "--benchmark-json=run.json"),
        *("--benchmark-compare", "--benchmark-compare-fail=min:5%", "--benchmark-histogram=plot"),
    ]
    with monkeypatch.context() as patch:
        patch.setenv("PYTEST_XDIST_WORKER", "gw0")
        patch.setattr(distribution, "is_worker", lambda config: True)
        of_worker = session(pytester, *asked)
    kept = ("save", "autosave", "json", "compare", "compare_fail", "histogram")
    assert not any(getattr(of_worker, name) for name in kept)
    assert not of_worker.disabled
    alone = session(pytester, *asked)
    assert all(getattr(alone, name) for name in kept)


#: options of pytest-benchmark that say how one benchmark is timed, or how all are shown
HARMLESS = {
    *("min_time", "max_time", "min_rounds", "timer", "precision", "confidence", "disable_gc"),
    *("calibration_precision", "warmup", "warmup_iterations", "verbose", "quiet", "skip", "only"),
    *("disable", "enable", "group_by", "sort", "columns", "name", "time_unit", "storage", "netrc"),
    *("cprofile", "cprofile_loops", "cprofile_top", "cprofile_dump", "save_data"),
}


def test_every_option_is_known(pytester):
    """A new one may have to act once."""
    config = pytester.parseconfig()
    given = {n: v for n, v in vars(config.option).items() if n.startswith("benchmark_")}
    assert set(given) == {f"benchmark_{name}" for name in HARMLESS} | adapter.BOOKKEEPING.keys()
    assert {name: given[name] for name in adapter.BOOKKEEPING} == adapter.BOOKKEEPING
