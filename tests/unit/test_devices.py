"""One device per worker, from an explicit pool."""

from __future__ import annotations

import os

import pytest

from bitgate.plugin import devices

pytest_plugins = ["pytester"]

TEST = """
import os, sys, time, pytest
@pytest.mark.parametrize("number", range(6))
def test_device(number, worker_id):
    assert "torch" not in sys.modules
    with open("seen.txt", "a") as file:
        file.write(f"{worker_id} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
    time.sleep(0.2)
"""


def seen(pytester):
    lines = (pytester.path / "seen.txt").read_text().splitlines()
    return {tuple(line.split()) for line in lines}


ONE = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa-1)\n"
TWO = ONE + "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22bb-2)\n"
DIVIDED = (
    ONE
    + "  MIG 3g.40gb     Device  0: (UUID: MIG-33cc-3)\n"
    + "  MIG 3g.40gb     Device  1: (UUID: MIG-44dd-4)\n"
    + "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22bb-2)\n"
)
cuda = pytest.mark.skipif(not devices.torch_has_cuda(), reason="torch is built without CUDA")


@pytest.fixture
def gpus(pytester, monkeypatch):
    """Makes a machine whose driver lists these GPUs, and says something else if it fails."""
    folder = pytester.mkdir("bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(devices.VARIABLE, raising=False)

    def make(listed, status=0):
        path = folder / "nvidia-smi"
        path.write_text(f'#!/bin/sh\n[ "$*" = -L ] && cat <<.\n{listed}.\nexit {status}\n')
        path.chmod(0o755)
        devices.installed.cache_clear()

    make("No devices were found\n")
    yield make
    devices.installed.cache_clear()


@pytest.fixture
def project(pytester, gpus):
    pytester.makepyfile(test_it=TEST)
    return pytester


def test_each_worker_has_its_own(project):
    done = project.runpytest_subprocess("-p", "bitgate.plugin", "-n", "2", "--devices", "3,5")
    done.assert_outcomes(passed=6)
    assert seen(project) == {("gw0", "3"), ("gw1", "5")}


def test_the_pool_comes_from_the_environment_and_is_what_auto_means(project, monkeypatch):
    monkeypatch.setenv(devices.VARIABLE, "1, 2,7")
    done = project.runpytest_subprocess("-p", "bitgate.plugin", "-n", "auto")
    done.assert_outcomes(passed=6)
    assert seen(project) == {("gw0", "1"), ("gw1", "2"), ("gw2", "7")}


def test_more_workers_than_devices(project):
    done = project.runpytest_subprocess("-p", "bitgate.plugin", "-n", "3", "--devices", "0,1")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*3 workers for 2 devices (0, 1); use -n 2*--share-devices*"])
    assert not (project.path / "seen.txt").exists()
    shared = project.runpytest_subprocess(
        "-p", "bitgate.plugin", "-n", "3", "--devices", "0,1", "--share-devices"
    )
    shared.assert_outcomes(passed=6)
    assert {device for _, device in seen(project)} == {"0", "1"}


def test_a_replacement_inherits_the_device(project):
    project.makepyfile(
        test_it=TEST
        + """
def test_dies(worker_id):
    os.kill(os.getpid(), 9)

@pytest.mark.parametrize("number", range(6))
def test_after(number, worker_id):
    with open("seen.txt", "a") as file:
        file.write(f"{worker_id} {os.environ['CUDA_VISIBLE_DEVICES']}\\n")
"""
    )
    done = project.runpytest_subprocess("-p", "bitgate.plugin", "-n", "1", "--devices", "9")
    done.assert_outcomes(passed=12, failed=1)
    assert seen(project) == {("gw0", "9"), ("gw1", "9")}
    done.stdout.fnmatch_lines(["*worker 'gw0' crashed while running*test_dies*"])


def test_without_devices_nothing_is_set(project):
    done = project.runpytest_subprocess("-p", "bitgate.plugin", "-n", "2")
    done.assert_outcomes(passed=6)
    assert {device for _, device in seen(project)} == {"-"}


# --- which there are -----------------------------------------------------------------------


def options(pytester, *arguments):
    return pytester.parseconfig("-p", "bitgate.plugin", *arguments)


@cuda
@pytest.mark.parametrize(
    ("listed", "status", "found"),
    [
        (TWO, 0, ["GPU-11aa-1", "GPU-22bb-2"]),
        (DIVIDED, 0, ["MIG-33cc-3", "MIG-44dd-4", "GPU-22bb-2"]),
        ("No devices were found\n", 0, []),
        ("NVIDIA-SMI has failed, it couldn't communicate with the NVIDIA driver\n", 9, []),
    ],
)
def test_what_the_driver_lists(pytester, gpus, listed, status, found):
    gpus(listed, status)
    assert devices.pool(options(pytester)) == found
    assert devices.on_accelerator(options(pytester)) == bool(found)


def test_without_a_driver_there_are_none(pytester, gpus, monkeypatch):
    monkeypatch.setenv("PATH", str(pytester.mkdir("empty")))
    assert devices.pool(options(pytester)) == []
    assert not devices.on_accelerator(options(pytester))


@pytest.mark.parametrize(
    ("variable", "arguments", "found"),
    [
        ("", [], []),  # CUDA shows none
        ("-1", [], []),
        ("2, 0,-1,1", [], ["2", "0"]),  # as CUDA reads it
        ("GPU-8,MIG-9", [], ["GPU-8", "MIG-9"]),
        ("0,1", ["--devices=5"], ["5"]),
        ("0,1", ["--devices="], []),
        ("0,1", ["--device=cpu"], []),
        (None, ["--device=cpu"], []),
    ],
)
def test_what_is_given(pytester, gpus, monkeypatch, variable, arguments, found):
    gpus(TWO)
    if variable is not None:
        monkeypatch.setenv(devices.VARIABLE, variable)
    assert devices.pool(options(pytester, *arguments)) == found


@cuda
@pytest.mark.parametrize(
    ("device", "variable", "listed", "works_there"),
    [
        ("auto", None, ONE, True),
        ("auto", "0", ONE, True),
        ("auto", "", ONE, False),
        ("auto", "0", "", False),  # a variable makes no GPU
        ("cuda", None, "", True),
        ("cuda:1", None, "", True),
        ("cpu", None, ONE, False),
    ],
)
def test_where_a_process_works(pytester, gpus, monkeypatch, device, variable, listed, works_there):
    gpus(listed)
    if variable is not None:
        monkeypatch.setenv(devices.VARIABLE, variable)
    assert devices.on_accelerator(options(pytester, f"--device={device}")) is works_there


# --- what is refused -----------------------------------------------------------------------

OWN = f"//env:{devices.VARIABLE}="


def why(pytester, *arguments):
    """Why so many workers are refused; None if they are not."""
    try:
        devices.refuse_to_share(options(pytester, "--dist=load", *arguments))
    except pytest.UsageError as error:
        return str(error)
    return None


@cuda
@pytest.mark.parametrize(
    "arguments",
    [
        ["--tx=2*popen"],
        ["--tx=4*popen", "--device=cpu"],
        ["--tx=4*popen", "--share-devices"],
        ["--tx=2*popen", "--tx=2*ssh=gpu"],  # it has devices of its own
        ["--tx=2*popen", "--device=cuda:0"],
        [f"--tx=popen{OWN}0", f"--tx=popen{OWN}1"],
        [f"--tx=popen{OWN}0", "--tx=popen", "--device=cpu"],
        [f"--tx=2*popen{OWN}0", "--share-devices"],
        ["--tx=popen", "--devices=0,0", "--share-devices"],
    ],
)
def test_each_has_its_own(pytester, gpus, arguments):
    gpus(TWO)
    assert why(pytester, *arguments) is None


@cuda
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tx=3*popen"], "3 workers for 2 devices (GPU-11aa-1, GPU-22bb-2); use -n 2"),
        (["--tx=2*popen", "--devices=0"], "2 workers for 1 devices (0); use -n 1"),
        (["--tx=2*popen", "--devices=0,0"], "--devices: 0 is there twice"),
        ([f"--tx=2*popen{OWN}1"], f"env:{devices.VARIABLE}=: 1 is there twice"),
        ([f"--tx=popen{OWN}0", "--tx=popen"], "1 workers of this host name no device"),
        (["--tx=popen", "--device=cuda:1"], "give --device cuda --devices 1"),
        (["--tx=popen", "--device=cuda:1", "--share-devices"], "give --device cuda --devices 1"),
    ],
)
def test_devices_that_would_be_shared(pytester, gpus, arguments, words):
    gpus(TWO)
    assert words in why(pytester, *arguments)


def test_devices_that_nothing_names(pytester, gpus):
    """Where workers are to use them, and would all use the first."""
    assert "no device is known here" in why(pytester, "--tx=2*popen", "--device=cuda")
    assert why(pytester, "--tx=popen", "--device=cuda") is None
    assert why(pytester, "--tx=2*popen", "--device=cuda", "--devices=0,1") is None
    assert why(pytester, "--tx=2*popen") is None  # they use the CPU


# --- in whole processes --------------------------------------------------------------------

QUIET = """
import os, sys
from bitgate.plugin.session import session_of

def test_where(request, worker_id):
    # none waits for another: they share no cores
    assert not session_of(request.config).quiet.enabled
    assert "torch" not in sys.modules
    with open("seen.txt", "a") as file:
        file.write(f"{worker_id} {os.environ['CUDA_VISIBLE_DEVICES']}\\n")
"""


@cuda
def test_a_machine_with_gpus(free_project, pytester, gpus):
    free_project(pytester.path)
    (pytester.path / "bench" / "test_where.py").write_text(QUIET)
    gpus(TWO)
    done = pytester.runpytest_subprocess("bench/test_where.py", "-n", "auto")
    done.assert_outcomes(passed=1)
    ((worker, device),) = seen(pytester)
    assert (worker, device) in {("gw0", "GPU-11aa-1"), ("gw1", "GPU-22bb-2")}
    refused = pytester.runpytest_subprocess("bench", "-n", "3")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["ERROR: -n: 3 workers for 2 devices (GPU-11aa-1, GPU-22bb-2)*"])
