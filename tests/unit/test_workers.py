"""Combinations of xdist's options that would measure something else than they say."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from bitgate.plugin import workers

pytest_plugins = ["pytester"]


def why(pytester, *arguments):
    """Why these options are refused; None if they are not."""
    config = pytester.parseconfig("-p", "bitgate.plugin", *arguments)
    try:
        workers.refuse(config)
    except pytest.UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-n", "2"],
        ["-n", "2", "--dist=loadfile"],
        ["-n", "0", "--tx=popen"],  # no workers are wanted, whatever addopts have
        ["-n", "0", "--dist=each"],
        ["--dist=load"],
        ["--dist=each"],
        ["-d", "--tx=2*popen"],
        ["--dist=load", f"--tx=popen//python={sys.executable} -B//nice=5//env:A=//env:B=c"],
        ["--dist=load", "--tx=2*ssh=-p 22 me@gpu1//chdir=a//python=b", "--tx=socket=gpu:1"],
        ["--dist=load", "--px=id=far//ssh=gpu", "--tx=2*popen//via=far//chdir=there//python=py"],
    ],
)
def test_as_they_say(pytester, arguments):
    assert why(pytester, *arguments) is None


@pytest.mark.parametrize("number", ["2", "auto"])
def test_hosts_that_a_number_would_replace(pytester, number):
    said = why(pytester, "-n", number, "--tx", "ssh=me@gpu", "--tx", "2*popen")
    assert f"-n {number} would replace --tx ssh=me@gpu --tx '2*popen'" in said
    assert "type --dist load --tx ssh=me@gpu" in said


@pytest.mark.parametrize("spec", ["popen", "ssh=gpu"])
def test_workers_that_would_be_ignored(pytester, spec):
    assert f"type --dist load --tx {spec}" in why(pytester, "--tx", spec)


@pytest.mark.parametrize("asked", [["-n", "2"], ["--tx=popen"]])
def test_cases_that_would_be_measured_by_each(pytester, asked):
    assert "use --dist load" in why(pytester, "--dist=each", *asked)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "'' is no word for it"),
        ("poppen", "'poppen' is no word for it"),
        ("python=py", "it is no kind of worker"),
        ("popen//ssh=gpu", "it is popen and ssh"),
        ("popen//popen", "a word is there twice"),
        ("ssh", "ssh= is empty"),
        ("ssh=gpu//chdir=", "chdir= is empty"),
        ("ssh=gpu//pyhton=py", "'pyhton' is no word for it"),
        ("ssh=gpu//execmodel=thread", "'execmodel' is no word for it"),  # xdist has its own
        ("ssh=gpu//_spec=x", "'_spec' is no word for it"),
        ("ssh=gpu///chdir=x", "'/chdir' is no word for it"),
        ("socket=gpu", "socket= has no port"),
        ("popen//nice=high", "nice= is a number"),
        ("2*popen//id=one", "there is another id=one"),
        ("popen//via=far", "there is no --px id=far"),
        ("popen//python=/no/python", "there is no /no/python"),
        ("popen//python='", "python=' is no command"),
        ("popen//chdir=there", "runs where pytest was started; leave chdir= out"),
        ("0*popen", "--tx 0*popen is no worker: expected 1 or more before"),
        ("-2*popen", "--tx -2*popen is no worker"),
    ],
)
def test_malformed(pytester, spec, problem):
    said = why(pytester, "--dist=load", f"--tx={spec}")
    assert problem in said


def test_fewer_workers_than_none(pytester):
    """xdist would take it for no workers at all, and a journal would move that is to be resumed."""
    assert "-n -1 is no number of workers: expected 0 or more" in why(pytester, "-n", "-1")
    assert "--tx 0*popen is no worker" in why(pytester, "--dist=load", "--tx=popen", "--tx=0*popen")


def test_a_malformed_proxy(pytester):
    said = why(pytester, "--dist=load", "--tx=popen//via=far", "--px=id=far//shs=gpu")
    assert "--px id=far//shs=gpu: 'shs' is no word for it" in said


def test_a_proxy_without_a_name(pytester):
    assert "no id=" in why(pytester, "--dist=load", "--tx=popen", "--px=ssh=gpu")


# --- in whole processes --------------------------------------------------------------------


def test_a_way_to_distribute_without_workers_is_one_process(free_project, pytester):
    """As for xdist; pytest-benchmark by itself would not measure."""
    free_project(pytester.path)
    done = pytester.runpytest_subprocess(
        *("bench", "--dist=load", "--benchmark-only", "--benchmark-json=run.json")
    )
    done.assert_outcomes(passed=4)
    printed = done.stdout.str() + done.stderr.str()
    assert "automatically disabled" not in printed
    measured = json.loads((pytester.path / "run.json").read_text())["benchmarks"]
    assert [benchmark["stats"]["data"] for benchmark in measured] == [[0.25, 0.5]] * 4


DIES = """
import os, signal, time
from pathlib import Path

WHO = os.environ.get("PYTEST_XDIST_WORKER")
HERE = Path(__file__).parent

def say(name):
    (HERE / name).touch()

def wait(name):
    end = time.monotonic() + 60
    while not (HERE / name).exists():
        assert time.monotonic() < end, name
        time.sleep(0.01)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def pytest_xdist_node_collection_finished(node):  # in the controller
    say(f"{node.gateway.id} collected")

def pytest_testnodedown(node, error):
    say(f"{node.gateway.id} down")

"""


def with_deaths(free_project, pytester, body):
    free_project(pytester.path)
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + DIES + body)


@pytest.mark.parametrize(
    "body",
    [
        # the other is collecting, and does so until the lost one is replaced
        """
def pytest_collection_modifyitems():
    if WHO == "gw0": die()
    if WHO == "gw1": wait("gw2 collected")
""",
        # the other has collected
        """
def pytest_collection_modifyitems():
    if WHO == "gw1": wait("gw0 collected"); die()
""",
        # it had itself, and the other had not: nothing begins before that has
        """
def pytest_collection_modifyitems():
    if WHO == "gw1": wait("gw2 collected"); time.sleep(1)
def pytest_runtest_setup():
    assert (HERE / "gw1 collected").exists()
@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    if WHO == "gw0": wait("gw0 collected"); die()
""",
    ],
    ids=["none had collected", "the other had", "it had"],
)
@pytest.mark.slow
def test_a_worker_lost_before_all_have_collected_is_replaced(free_project, pytester, body):
    with_deaths(free_project, pytester, body)
    done = pytester.runpytest_subprocess("bench", "-n", "2", "--benchmark-json=run.json")
    assert done.ret == 0
    done.assert_outcomes(passed=4)
    done.stdout.fnmatch_lines(["replacing crashed worker gw?"])
    measured = json.loads((pytester.path / "run.json").read_text())["benchmarks"]
    assert len({benchmark["fullname"] for benchmark in measured}) == len(measured) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "lives"),
    [(["-n", "2", "--max-worker-restart=2"], None), (["--dist=load", "--tx=2*popen"], "gw0")],
)
def test_workers_that_always_die_end_the_run(free_project, pytester, given, lives):
    """Not never, and not as if all had gone well."""
    body = f"""
distribution.RESTARTS = 1  # of each --tx
def pytest_collection_modifyitems():
    if WHO not in (None, {lives!r}): die()
"""
    with_deaths(free_project, pytester, "from bitgate.plugin import distribution\n" + body)
    done = pytester.runpytest_subprocess("bench", *given, timeout=120)
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines(["*maximum crashed workers reached: 2*", "*workers died; *not run*"])


def test_a_worker_whose_controller_is_killed_ends_without_a_traceback(pytester):
    pytester.makeconftest('pytest_plugins = ["bitgate.plugin"]')
    pytester.makepyfile(
        """
        import atexit, os, pathlib, signal, time

        def test_it():
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(0.5)  # execnet sees that the pipe is closed

        if "PYTEST_XDIST_WORKER" in os.environ:
            atexit.register(pathlib.Path("ended").touch)
        """
    )
    with (pytester.path / "said").open("w") as said:
        command = [sys.executable, "-m", "pytest", "-n", "1"]
        done = subprocess.run(command, stdout=said, stderr=said, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 60
    while not (pytester.path / "ended").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    text = (pytester.path / "said").read_text()
    assert "OSError" not in text
    assert "Traceback" not in text
