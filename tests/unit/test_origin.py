"""A figure is of the commit of the project that was measured, wherever pytest was started."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitgate.history import origin
from bitgate.plugin.hosts import _place_there

pytest_plugins = ["pytester"]


def git(folder, *arguments):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkouts(tmp_path, monkeypatch):
    """Two repositories; the process is in the second."""
    made = []
    for name in ("measured", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        git(tmp_path / name, "init", "-q")
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "-q", "-m", name)
        made.append(tmp_path / name)
    monkeypatch.chdir(made[1])
    return made


def test_the_checkout_is_asked_not_the_folder_of_the_process(checkouts, monkeypatch):
    measured, elsewhere = checkouts
    monkeypatch.setattr(origin, "checkout", None)
    assert origin.commit() == git(elsewhere, "rev-parse", "HEAD")
    assert origin.origin()["folder"] == str(elsewhere)
    monkeypatch.setattr(origin, "checkout", measured)
    assert origin.commit() == git(measured, "rev-parse", "HEAD")
    assert origin.origin()["folder"] == str(measured)
    assert origin.changes() is None
    (elsewhere / "file").write_text("changed")
    assert origin.changes() is None
    (measured / "file").write_text("changed")
    assert origin.changes()
    monkeypatch.setattr(origin, "checkout", measured / "gone")
    assert origin.commit() is None


@pytest.mark.parametrize(
    ("rootdir", "started", "there"),
    [
        ("/a/project", "/a/project", "."),
        ("/a/project", "/a", "project"),
        ("/a/project", "/a/project/bench", ".."),
        ("/a/project", "/home/me", "/a/project"),
    ],
)
def test_where_another_host_has_its_checkout(rootdir, started, there):
    config = SimpleNamespace(
        rootpath=Path(rootdir), invocation_params=SimpleNamespace(dir=Path(started))
    )
    assert _place_there(config) == there


def test_a_project_measured_from_elsewhere(checkouts, free_project, pytester, monkeypatch):
    measured, elsewhere = checkouts
    free_project(measured)
    git(measured, "add", ".")
    git(measured, "commit", "-q", "-m", "bench")
    monkeypatch.chdir(elsewhere)
    arguments = (str(measured / "bench"), "-n", "1", "--benchmark-json=run.json")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=4)
    for benchmark in json.loads((elsewhere / "run.json").read_text())["benchmarks"]:
        record = benchmark["extra_info"]["bitgate"]
        assert record["commit"] == git(measured, "rev-parse", "HEAD")
