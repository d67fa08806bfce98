"""What another host is asked, told and refused for."""

from __future__ import annotations

from types import SimpleNamespace

import execnet
import pytest

from bitgate.history import origin
from bitgate.plugin import other_hosts
from bitgate.plugin.hosts import differences

HERE = {
    "host": "desk",
    "folder": "/home/me/bitgate",
    "versions": {"python": "3.12.1", "torch": "2.9.0", "hqq": "0.2.8"},
    "commit": "abc+",
    "changes": "1f",
}


def there(**changes):
    return {**HERE, "host": "gpu1", "folder": "/srv/bitgate", **changes}


def test_the_same_is_no_difference():
    assert differences(HERE, there(), copied=False) == []


def test_versions_of_packages():
    found = differences(
        HERE, there(versions={"python": "3.12.1", "torch": "2.10.0", "gemlite": "0.6"}), copied=True
    )
    assert found == [
        "gemlite: 0.6 on gpu1, not installed here (desk)",
        "hqq: not installed on gpu1, 0.2.8 here (desk)",
        "torch: 2.10.0 on gpu1, 2.9.0 here (desk)",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"commit": "def"}, "/srv/bitgate: commit def on gpu1, commit abc+ here"),
        ({"commit": None}, "/srv/bitgate: no git checkout on gpu1, commit abc+ here"),
        ({"changes": "2e"}, "/srv/bitgate: its uncommitted changes are not the same"),
    ],
)
def test_checkouts(change, words):
    assert differences(HERE, there(**change), copied=False)[0].startswith(words)
    assert differences(HERE, there(**change), copied=True) == []


def test_a_host_is_asked_without_bitgate_or_its_folder(tmp_path):
    """As the controller asks it; this one has no package of Bitgate to import."""
    group = execnet.Group(execmodel="main_thread_only")
    try:
        gateway = group.makegateway(f"popen//chdir={tmp_path}")
        (tmp_path / "copied").mkdir()
        question = {"checkout": ".", "folders": ["copied", "nothing"]}
        answer = other_hosts.ask(gateway, origin, question)
    finally:
        group.terminate(timeout=5)
    assert answer["folder"] == str(tmp_path)
    assert answer["versions"] == origin.origin()["versions"]
    assert answer["commit"] is None
    copied = origin.identity(tmp_path / "copied")
    assert answer["folders"] == {"copied": copied, "nothing": None}


@pytest.mark.parametrize(
    ("specs", "elsewhere"),
    [
        (["popen", "3*popen//python=python3"], False),
        (["popen", "ssh=gpu1"], True),
        (["2*ssh=gpu1//chdir=popen"], True),
        (["popen//via=proxy"], True),
        ([], False),
    ],
)
def test_which_workers_are_elsewhere(specs, elsewhere):
    config = SimpleNamespace(getoption=lambda name, default: specs)
    assert other_hosts.has_other_hosts(config) is elsewhere


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "checkout"
    for path in ("bench", "fixtures", "all"):
        (folder / path).mkdir(parents=True)
    (folder / "strict.toml").touch()
    monkeypatch.chdir(folder)
    return folder


def test_a_copied_checkout_lies_under_its_name(checkout):
    def told(*args):
        return other_hosts.arguments_there(["bench"], [checkout], args)

    assert told("bench", "-n", "2") == ["checkout/bench", "-n", "2"]
    assert told("bench::test_x", str(checkout)) == ["checkout/bench::test_x", "checkout"]
    assert told("--catalog", "fixtures") == ["--catalog", "checkout/fixtures"]
    assert told("--thresholds=strict.toml") == ["--thresholds=checkout/strict.toml"]
    assert told("--thresholds=/no/such.toml") == ["--thresholds=/no/such.toml"]
    assert told("-k", "bench", "-m", "all") == ["-k", "bench", "-m", "all"]
    with pytest.raises(pytest.UsageError, match="bench is in no --rsyncdir"):
        other_hosts.arguments_there(["bench"], [checkout / "fixtures"], ["bench"])


def test_a_checkout_of_its_own_is_told_relative_paths(checkout):
    given = ["bench", str(checkout / "bench"), "--catalog=fixtures", "-k", "bench", "/dev/null"]
    told = other_hosts.arguments_there(["bench"], [], given)
    assert told == ["bench", "bench", "--catalog=fixtures", "-k", "bench", "/dev/null"]
