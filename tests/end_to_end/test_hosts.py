"""Workers on other hosts.

Two real ones, with ssh to each, are made of network namespaces. For what is refused before anything
is measured, and for copying, an `ssh` will do that starts its command on this host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
CASES = {
    f"{kind}[llama-tiny-hqq-w{bits}g64{suffix}]"
    for bits in (8, 4)
    for kind, suffix in (("quantize", ""), ("perplexity", "-words"))
}


def records(path):
    benchmarks = json.loads(path.read_text())["benchmarks"]
    return {b["extra_info"]["bitgate"]["case"]: b["extra_info"]["bitgate"] for b in benchmarks}


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def python(folder, *lines):
    """This Python and this checkout of Bitgate, whatever the environment of whoever starts it."""
    path = script(folder, *lines, f'PYTHONPATH="$PYTHONPATH:{ROOT}" exec {sys.executable} "$@"')
    return f"python={path}"


# --- an ssh that goes nowhere --------------------------------------------------------------


@dataclass
class Near:
    """Runs of the project with workers on hosts that are all this one."""

    project: object
    folder: Path

    def run(self, *specs, dist=("--dist", "load"), arguments=()):
        command = self.project.command(*dist, *arguments, "-k", "quantize and w8")
        for spec in specs:
            command += ["--tx", spec]
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=self.project.path,
            env={**self.project.environment(), "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def spec(self, name="near", python=None, chdir=None):
        return "//".join([f"ssh={name}", python or self.python, f"chdir={chdir or self.checkout}"])

    @property
    def python(self):
        return python(self.folder / "python-there")

    @property
    def checkout(self):
        return self.project.path

    def git(self, *arguments, cwd=None):
        name = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        subprocess.run(
            ["git", *name, *arguments], cwd=cwd or self.checkout, check=True, capture_output=True
        )


@pytest.fixture
def near(project, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    script(
        folder / "ssh",
        'case "$*" in *nowhere*)',
        "  read bootstrap",
        '  echo "ssh: connect to nowhere: refused" >&2',
        "  exit 255;;",
        "esac",
        "for last; do :; done",
        'cd /; exec sh -c "$last"',
    )
    return Near(project, folder)


def refused(done, *words):
    assert done.returncode == 4, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "passed" not in done.stdout


def test_a_host_that_cannot_be_reached(near):
    done = near.run(near.spec(), near.spec("me@nowhere"))
    refused(done, "ERROR: host me@nowhere cannot be reached", "connect to nowhere: refused")


def test_a_host_without_python(near):
    done = near.run(near.spec(python="python=/no/such/python"))
    refused(done, "ERROR: host near cannot be reached, or has no Python", "//python=")


def test_a_host_with_other_versions(near):
    other = near.folder / "packages"
    for package, version in (("hqq", "9.9"), ("gemlite", "7.7")):
        info = other / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        info.joinpath("METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
    there = python(near.folder / "python-other", f"export PYTHONPATH={other}")
    done = near.run(near.spec(), near.spec("far", python=there))
    refused(done, "host far would not measure the same", "hqq: 9.9 on", "gemlite: 7.7 on")


def test_a_host_at_another_commit(near, tmp_path):
    near.git("init", "-q")
    near.git("add", ".")
    near.git("commit", "-q", "-m", "one")
    there = tmp_path / "there"
    near.git("clone", "-q", str(near.checkout), str(there))
    same = near.run(near.spec(chdir=there), arguments=["--benchmark-json=run.json"])
    assert same.returncode == 0, same.stdout + same.stderr
    (record,) = records(near.checkout / "run.json").values()
    assert re.fullmatch("[0-9a-f]{40}", record["commit"])
    bench = there / "bench" / "test_quantize.py"
    bench.write_text(f"{bench.read_text()}\n")
    refused(near.run(near.spec(chdir=there)), "host near would not measure the same", "+ on ")


@pytest.mark.slow
def test_a_copy_of_the_checkout_is_measured_at_its_commit(near, tmp_path):
    near.git("init", "-q")
    near.git("add", ".")
    near.git("commit", "-q", "-m", "one")
    (tmp_path / "there").mkdir()
    copied = ["--rsyncdir", ".", "--thresholds=thresholds.toml", "--benchmark-json=run.json"]
    done = near.run(near.spec(chdir=tmp_path / "there"), arguments=copied)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "there" / "project" / "bench").is_dir()
    assert not (tmp_path / "there" / "pytest").exists()
    (record,) = records(near.checkout / "run.json").values()
    assert re.fullmatch("[0-9a-f]{40}", record["commit"])
    # onto itself it would lose .git
    onto_itself = near.run(near.spec(chdir=near.checkout.parent), arguments=copied)
    refused(onto_itself, "would be copied onto itself")
    assert (near.checkout / ".git").is_dir()
    elsewhere = near.run(near.spec(chdir=tmp_path / "there"), arguments=["--rsyncdir", "fixtures"])
    refused(elsewhere, "bench is in no --rsyncdir")


@pytest.mark.slow
def test_hosts_that_would_be_forgotten(near):
    refused(near.run(near.spec(), dist=()), "--dist load")


# --- two hosts -----------------------------------------------------------------------------


def missing():
    """Why this machine cannot make hosts of namespaces, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    tools = {"ip": "iproute2", "unshare": "util-linux", "ssh": "openssh-client"}
    tools |= {"ssh-keygen": "openssh-client"}
    lacking = {package for tool, package in tools.items() if shutil.which(tool) is None}
    if SSHD is None:
        lacking.add("openssh-server")
    if lacking:
        return f"not installed: {', '.join(sorted(lacking))}"
    probe = f"bitgate-probe-{os.getpid()}"
    made = subprocess.run(
        ["ip", "netns", "add", probe], capture_output=True, text=True, check=False
    )
    if made.returncode:
        return f"no namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return None


@dataclass
class Net:
    """A controller and two hosts, each a namespace, with a cable to each host and none to the rest
    of the world."""

    folder: Path
    names: dict[str, str]

    HOSTS = ("gpu1", "gpu2")

    @classmethod
    def of(cls, folder):
        return cls(folder, {n: f"bitgate-{os.getpid()}-{n}" for n in ("controller", *cls.HOSTS)})

    def ip(self, *arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def inside(self, name):
        return ["ip", "netns", "exec", self.names[name]]

    def up(self):
        keys = self.folder
        for name in ("user", *self.HOSTS):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True
            )
        for namespace in self.names.values():
            self.ip("netns", "add", namespace)
        known, config = [], []
        for number, name in enumerate(self.HOSTS):
            here, there = f"10.231.{number}.1", f"10.231.{number}.2"
            ends = f"to-{name}", "eth0"
            controller, host = self.names["controller"], self.names[name]
            self.ip(
                *("-n", controller, "link", "add", ends[0], "type", "veth"),
                *("peer", "name", ends[1], "netns", host),
            )
            for namespace, end, address in ((controller, ends[0], here), (host, ends[1], there)):
                self.ip("-n", namespace, "address", "add", f"{address}/30", "dev", end)
                self.ip("-n", namespace, "link", "set", end, "up")
            known.append(f"{there} {(keys / f'{name}.pub').read_text()}")
            config += [f"Host {name}", f"  HostName {there}"]
            self.start(name, there)
        (keys / "known_hosts").write_text("".join(known))
        config += [
            "Host *",
            f"  IdentityFile {keys / 'user'}",
            f"  UserKnownHostsFile {keys / 'known_hosts'}",
            "  IdentitiesOnly yes",
            "  BatchMode yes",
            "  ConnectTimeout 5",
            "  ConnectionAttempts 5",
        ]
        (keys / "ssh_config").write_text("\n".join(config) + "\n")

    def start(self, name, address):
        """A host is its own host name and an sshd."""
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.folder / f"sshd_{name}"
        config.write_text(
            f"ListenAddress {address}\nHostKey {self.folder / name}\n"
            f"AuthorizedKeysFile {self.folder / 'user.pub'}\nPidFile none\n"
            "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\n"
        )
        line = f"hostname {name} && exec {SSHD} -D -e -f {config}"
        with (self.folder / f"{name}.log").open("w") as log:
            subprocess.Popen(
                [*self.inside(name), "unshare", "--uts", "sh", "-c", line],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        for _ in range(100):
            if "listening" in (self.folder / f"{name}.log").read_text():
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / f"{name}.log").read_text())

    def kill(self, name):
        """Everything that runs on a host, as if at once: stopped first, so that its sshd lets
        nobody in again while its workers die."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in self.pids(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        for _ in range(100):
            if not self.pids(name):
                return
            time.sleep(0.1)
        raise AssertionError(f"{name} is not dead")

    def pids(self, name):
        listed = subprocess.run(
            ["ip", "netns", "pids", self.names[name]], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def down(self):
        for name, namespace in self.names.items():
            self.kill(name)
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)

    def command(self, project, *arguments):
        spec = (
            f"ssh_config={self.folder / 'ssh_config'}//{python(self.folder / 'python')}"
            f"//chdir={project.path}//env:OMP_NUM_THREADS=1"
        )
        hosts = []
        for name in self.HOSTS:
            hosts += ["--tx", f"ssh={name}//{spec}//env:BITGATE_CACHE={project.path}/cache-{name}"]
        arguments = ("--dist", "load", *hosts, *arguments, "--benchmark-json=run.json")
        return [*self.inside("controller"), *project.command(*arguments)]

    def measure(self, project, *arguments) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(project, *arguments),
            cwd=project.path,
            env={**project.environment(), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def can_make_hosts():
    why = missing()
    if why is not None:
        pytest.skip(why)


@pytest.fixture
def net(can_make_hosts, tmp_path) -> Iterator[Net]:
    folder = tmp_path / "net"
    folder.mkdir()
    folder.chmod(0o700)
    made = Net.of(folder)
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.mark.hosts
def test_two_hosts_leave_one_run(project, net):
    process = net.measure(project, "--benchmark-autosave")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "4 passed" in output
    found = records(project.path / "run.json")
    assert set(found) == CASES
    assert {record["host"] for record in found.values()} == set(net.HOSTS)
    assert (project.path / "run.parquet").is_file()
    assert len(project.saved()) == 1


#: on one host, the first case waits to be killed
WAITS = """
pytest_plugins = ["bitgate.plugin"]
import os, pathlib, platform, time
def pytest_runtest_call(item):
    told = pathlib.Path(__file__).with_name("pid")
    if platform.node() == "gpu2" and not told.exists():
        told.with_suffix(".part").write_text(f"{os.getpid()} {item.nodeid}")
        told.with_suffix(".part").rename(told)
        time.sleep(300)
"""


@pytest.mark.hosts
@pytest.mark.parametrize("dies", ["worker", "host"])
def test_what_dies_costs_its_own_case(project, net, dies):
    (project.path / "conftest.py").write_text(WAITS)
    told = project.path / "pid"
    process = net.measure(project)
    try:
        while not told.exists() and process.poll() is None:
            time.sleep(0.1)
        assert process.poll() is None, process.stdout.read()
        pid, nodeid = told.read_text().split(" ", 1)
        if dies == "worker":
            os.kill(int(pid), signal.SIGKILL)
        else:
            net.kill("gpu2")
        output = process.communicate(timeout=300)[0]
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert "1 failed, 3 passed" in output
    assert f"crashed while running '{nodeid}'" in output
    assert "INTERNALERROR" not in output
    found = records(project.path / "run.json")
    lost = nodeid.split("::test_")[1]
    assert set(found) == CASES - {lost}
    if dies == "host":
        assert "host gpu2 cannot be reached" in output
        assert {record["host"] for record in found.values()} == {"gpu1"}
