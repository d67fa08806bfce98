"""One device per worker, from an explicit pool."""

from __future__ import annotations

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


@pytest.fixture
def project(pytester, monkeypatch):
    monkeypatch.delenv(devices.VARIABLE, raising=False)
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
