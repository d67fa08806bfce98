"""What the adapter makes of xdist for workers on other hosts, in real sessions. The hosts are this
one, reached by an `ssh` that goes nowhere and can be told that a host is down. Hosts that are
refused, and copies, are in tests/end_to_end/test_hosts.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from textwrap import indent

import pytest

import bitgate

pytest_plugins = ["pytester"]

SSH = """#!/bin/sh
for last; do
    [ -e "{folder}/down-$last" ] && {{ read bootstrap; exit 255; }}
done
cd /
exec sh -c "$last"
"""
CONFTEST = """
import os, signal, time
from pathlib import Path
from bitgate.plugin import distribution

HERE = Path({folder!r})
HOST = os.environ.get("HOST")
distribution.RESTARTS = 1

def say(name):
    (HERE / name).touch()

def wait(name):
    end = time.monotonic() + 60
    while not (HERE / name).exists():
        assert time.monotonic() < end, name
        time.sleep(0.01)

def write(name, *fields):
    with (HERE / name).open("a") as file:
        print(*fields, sep="\\t", file=file)

def pytest_collection_finish(session):  # every worker gets here, but not every one gets a test
    of = distribution.neighbours(session.config), distribution.workers(session.config)
    if HOST:
        write("told.txt", HOST, "{{}} of {{}}".format(*of))

def pytest_runtest_call(item):
    write("ran.txt", item.nodeid, HOST)
    do(item)

def pytest_testnodedown(node, error):  # in the controller, before it does anything about it
    say("done" if error is None else "lost")

def die(*hosts):
    for host in hosts:
        say(f"down-{{host}}")
    os.kill(os.getpid(), signal.SIGKILL)

def do(item):
    pass
"""


class Hosts:
    """A project with two cells of two cases each, and workers for it on `near` and `far`."""

    def __init__(self, pytester):
        self.pytester = pytester
        self.folder = pytester.path

    def do(self, body):
        """What every test does first."""
        path = self.folder / "conftest.py"
        more = CONFTEST.format(folder=str(self.folder)) + indent(body, "    ")
        path.write_text(path.read_text() + more)

    def run(self, *arguments, hosts=("near", "far"), chdir=None):
        place = f"python={sys.executable}//chdir={chdir or self.folder}"
        specs = [f"--tx=ssh={host}//{place}//env:HOST={host.split('@')[-1]}" for host in hosts]
        self.json = self.folder / "run.json"
        done = self.pytester.runpytest_subprocess(
            *("bench", "--dist=load", *specs, f"--benchmark-json={self.json}", *arguments),
            timeout=120,
        )
        assert "INTERNALERROR" not in done.stdout.str() + done.stderr.str()
        return done

    def ran(self):
        """Of each test that was begun: its id, the host."""
        return self._written("ran.txt")

    def told(self):
        """Of each worker: its host, how many of all workers it was told are there."""
        return self._written("told.txt")

    def _written(self, name):
        return [tuple(line.split("\t")) for line in (self.folder / name).read_text().splitlines()]

    def saved(self):
        return {
            benchmark["fullname"] for benchmark in json.loads(self.json.read_text())["benchmarks"]
        }


@pytest.fixture
def hosts(free_project, pytester, monkeypatch):
    folder = pytester.path
    free_project(folder)
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH.format(folder=folder))
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    root = str(Path(bitgate.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return Hosts(pytester)


@pytest.mark.parametrize(
    "body",
    [
        'if HOST == "far": wait("done"); die("far")',
        # a worker that is told what its last test is gets no others
        """
if HOST == "far": wait("at last"); die("far")
if "perplexity" in item.nodeid: say("at last"); wait("lost")
""",
    ],
    ids=["finished", "at its last test"],
)
@pytest.mark.slow
def test_a_worker_whose_host_is_gone_is_replaced_where_another_is_done(hosts, body):
    hosts.do(body)
    done = hosts.run()
    assert done.ret == 1
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(["host far cannot be reached*; other hosts take over"])
    ran = hosts.ran()
    (lost,) = (test for test, host in ran if host == "far")
    tests = {test for test, _ in ran}
    assert len(tests) == len(ran) == 4
    assert hosts.saved() == tests - {lost}


def test_no_host_is_left(hosts):
    hosts.do('if HOST == "far": wait("done"); die("near", "far")')
    done = hosts.run()
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines(["host far cannot be*", "host near cannot be*", "*no host is left*"])
    assert hosts.saved() == {test for test, host in hosts.ran() if host == "near"}


@pytest.mark.slow
def test_a_host_that_is_lost_with_nothing_left_to_run(hosts):
    hosts.do('if HOST == "far" and "perplexity" in item.nodeid: wait("done"); die("near", "far")')
    done = hosts.run()
    assert done.ret == 1
    done.assert_outcomes(passed=3, failed=1)


@pytest.mark.slow
def test_workers_die_only_so_often(hosts):
    """Without -n, xdist would replace them for ever."""
    hosts.do("die()")
    done = hosts.run(hosts=("near",))
    assert done.ret == 1
    done.stdout.fnmatch_lines(["*maximum crashed workers reached: 1"])
    assert len(hosts.ran()) == 2


def test_workers_are_told_how_many_share_their_host(hosts):
    hosts.do("")
    done = hosts.run(hosts=("me@near", "far", "near"))
    done.assert_outcomes(passed=4)
    assert sorted(hosts.told()) == [("far", "1 of 3"), ("near", "2 of 3"), ("near", "2 of 3")]
