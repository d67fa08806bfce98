"""Finding and reading runs: whatever lies there, a clear message and never a crash."""

from __future__ import annotations

import json
import subprocess

import pytest

from bitgate.history.saved import RunError, read_run
from bitgate.history.store import Store


@pytest.fixture
def store(runs):
    return lambda: Store([runs.folder], runs.folder.parent / "accepted.json")


# --- reading -------------------------------------------------------------------------------


def test_a_run_is_read_with_its_scores(runs):
    run = read_run(runs.save(runs.speed(2.0), runs.quality([300.0] * 16)))
    assert run.passed
    assert run.label == "0001 (aaaaaaa)"
    (record,) = run.records["perplexity[a]"]
    assert run.side(record).items["nll"].tolist() == [300.0] * 16
    assert run.side(run.records["decode[a]"][0]).items == {}


BROKEN = {
    "empty": ("", "is empty"),
    "cut": ('{"benchmarks": [', "is no whole JSON file"),
    "another file": ('{"a": 1}', "is no run that pytest-benchmark has saved"),
    "a list": ("[]", "is no run that pytest-benchmark has saved"),
    "null": ("null", "is no run that pytest-benchmark has saved"),
    "nested too deep": ("[" * 100_000, "is no whole JSON file"),
    "nonsense inside": ('{"benchmarks": [3]}', "is no run that pytest-benchmark has saved"),
    "nothing measured": ('{"benchmarks": []}', "holds no records of Bitgate"),
    "other benchmarks": ('{"benchmarks": [{"extra_info": {}}]}', "holds no records of Bitgate"),
    "half a record": (
        '{"benchmarks": [{"extra_info": {"bitgate": {"case": "a"}}}]}',
        "is no run that pytest-benchmark has saved: it lacks 'schema'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_run_is_refused(tmp_path, what):
    text, words = BROKEN[what]
    path = tmp_path / "0001_run.json"
    path.write_text(text)
    with pytest.raises(RunError, match=words) as error:
        read_run(path)
    assert str(path) in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="is no JSON file"):
        read_run(tmp_path / "run.json")
    with pytest.raises(RunError, match="cannot be read: No such file"):
        read_run(tmp_path / "gone.json")


def test_another_schema_is_refused(runs):
    record, items = runs.speed(2.0)
    path = runs.save((record | {"schema": 2}, items))
    with pytest.raises(RunError, match=r"decode\[a\] is recorded in schema 2.*reads schema 1"):
        read_run(path)


@pytest.mark.parametrize("value", ["fast", None, [1]])
def test_a_value_that_is_no_number_is_refused(runs, value):
    record, items = runs.speed(2.0)
    record["metrics"]["speedup"]["value"] = value
    with pytest.raises(RunError, match=r"decode\[a\]: metrics.speedup.value: .*number"):
        read_run(runs.save((record, items)))


@pytest.mark.parametrize("when", ["yesterday", None, 7, "", "0001-01-01T00:00:00+14:00"])
def test_a_run_of_no_known_time_is_refused(runs, when):
    """It would be the newest of all, or the oldest."""
    path = runs.save(runs.speed(2.0))
    path.write_text(json.dumps({**json.loads(path.read_text()), "datetime": when}))
    with pytest.raises(RunError, match=r"0001_run.json: datetime: expected a time such as .*, got"):
        read_run(path)


def test_the_newest_is_so_by_time_and_not_by_how_it_is_written(runs, store):
    for when in ("2026-01-01T23:30:00-02:00", "2026-01-02T01:00:00", "2026-01-02T03:00:00+02:30"):
        runs.save(runs.speed(2.0), when=when)
    assert [run.name for run in store().runs] == ["0001", "0002", "0003"]


@pytest.mark.parametrize("number", ["7", 7.5, None])
def test_a_count_that_is_none_is_refused(runs, number):
    record, items = runs.speed(2.0)
    record["metrics"]["speedup"]["interval"]["n"] = number
    with pytest.raises(RunError, match=r"decode\[a\]: metrics.speedup.interval.*n: "):
        read_run(runs.save((record, items)))


@pytest.mark.parametrize("top", [None, 7, []])
def test_what_bitgate_says_of_a_run_is_a_table(runs, top):
    with pytest.raises(RunError, match=r"0001_run.json is no run that pytest-benchmark has"):
        read_run(runs.save(runs.speed(2.0), bitgate=top))


def test_broken_scores_are_said_when_they_are_needed(runs):
    path = runs.save(runs.quality([300.0] * 16))
    path.with_suffix(".parquet").write_bytes(b"PAR1 no more")
    run = read_run(path)
    with pytest.raises(RunError, match="cannot be read, its runs' scores are lost"):
        run.side(run.records["perplexity[a]"][0])


def test_what_failed_is_known(runs):
    record, items = runs.speed(2.0, outcome="fail", verdicts=[{"outcome": "fail", "text": "slow"}])
    run = read_run(
        runs.save((record, items), bitgate={"failed": {"test_x": "broke"}, "unfinished": 2})
    )
    assert not run.passed
    assert run.failed == {"decode[a]": "slow", "test_x": "broke"}
    assert run.trouble == "2 failed: test_x, decode[a], 2 tests did not finish"


def test_hardware_of_runs_that_did_not_record_it(runs):
    old = {"hardware": None}
    machines = [{"machine_info": {"node": n, "cpu": {"brand_raw": n}}} for n in ("there", "here")]
    for top, expected in (({}, "CPU"), ({"bitgate": {"machines": machines}}, "here")):
        record, items = runs.speed(2.0)
        run = read_run(runs.save((record | old, items), **top))
        assert run.records["decode[a]"][0].hardware == expected
    record, items = runs.speed(2.0, execution={"device": "cuda"})
    assert read_run(runs.save((record | old, items))).records["decode[a]"][0].hardware is None


# --- finding -------------------------------------------------------------------------------


def test_by_path_number_and_latest(runs, store):
    first, second = (runs.save(runs.speed(value)) for value in (2.0, 2.1))
    other = runs.save(runs.speed(2.2), name="../elsewhere.json")
    for asked, expected in (
        (str(first), first),
        ("0002", second),
        ("2", second),
        (str(other), other),
        ("latest", second),
    ):
        assert store().reference(asked).runs[0].path == expected, asked


def test_latest_takes_each_case_from_the_newest_run_that_passed(runs, store):
    runs.save(runs.speed(2.0), runs.speed(1.0, case="decode[b]"))
    runs.save(runs.speed(2.1))
    runs.save(runs.speed(9.9, outcome="fail"))
    runs.save(runs.speed(9.8), bitgate={"failed": {"test_x": "broke"}})
    runs.save(runs.speed(9.7), bitgate={"unfinished": 1})
    (runs.folder / "0006_run.json").write_text("{")
    found = store()
    reference = found.reference("latest")
    assert reference.title == "latest, the newest of which is 0002 (aaaaaaa)"
    assert reference.find("decode[a]").record.metrics["speedup"].value == 2.1
    assert reference.find("decode[b]").run == "0001"
    assert reference.find("decode[c]") is None
    assert [run.name for run in reference.history] == ["0002", "0001"]
    (why,) = found.refused.values()
    assert "0006_run.json is no whole JSON file" in why


def test_history_ends_at_the_reference(runs, store):
    for value in (2.0, 2.1, 2.2):
        runs.save(runs.speed(value))
    assert [run.name for run in store().reference("0002").history] == ["0002", "0001"]


def test_nothing_to_find_says_what_there_is(runs, store):
    with pytest.raises(RunError, match="latest: no saved run has passed; there are no saved runs"):
        store().reference("latest")
    with pytest.raises(RunError, match=r"accepted: there is no .*accepted.json.*bitgate accept"):
        store().reference("accepted")
    runs.save(runs.speed(2.0, outcome="fail"))
    with pytest.raises(
        RunError, match=r"no saved run has passed; there is 0001 \(aaaaaaa\), which"
    ):
        store().reference("latest")
    with pytest.raises(RunError, match=r"0001 .* is no reference, as it did not pass: 1 failed"):
        store().reference("0001")
    assert store().either("0001").runs[0].name == "0001"  # to look at
    with pytest.raises(RunError, match="nonsense: no such file, no saved run of this number and"):
        store().reference("nonsense")


def test_a_number_in_two_folders_and_a_broken_one(runs, store):
    for machine in ("one", "two"):
        runs.save(runs.speed(2.0), name=f"{machine}/0001_run.json")
    with pytest.raises(RunError, match=r"0001: there are .*: give the path of one"):
        store().reference("0001")
    (runs.folder / "one" / "0002_run.json").write_text("")
    with pytest.raises(RunError, match=r"0002_run.json is empty"):
        store().reference("0002")


@pytest.fixture
def repository(runs, tmp_path, monkeypatch):
    """A repository of two commits; the hash of each."""
    monkeypatch.chdir(tmp_path)

    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(
            ["git", *name, *arguments], capture_output=True, check=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    commits = []
    for message in ("one", "two"):
        git("commit", "-q", "--allow-empty", "-m", message)
        commits.append(git("rev-parse", "HEAD"))
    return commits


def test_by_git_revision(runs, store, repository):
    one, two = repository
    for commit in (one, two, two + "+", two):
        runs.save(runs.speed(2.0), commit=commit)
    runs.save(runs.speed(9.0, outcome="fail"), commit=two)
    for asked, expected in (("main", "0004"), ("HEAD~1", "0001"), (one[:8], "0001"), (two, "0004")):
        assert store().reference(asked).runs[0].name == expected, asked
    assert store().either("main").runs[0].name == "0005"


def test_a_revision_without_a_run_says_how_to_make_one(runs, store, repository):
    _, two = repository
    runs.save(runs.speed(2.0), commit=two + "+")
    with pytest.raises(RunError, match=r"git checkout HEAD~1. and `pytest bench --benchmark-auto"):
        store().reference("HEAD~1")
    with pytest.raises(RunError, match=r"main \(.*\) without uncommitted changes \(0001 had some"):
        store().reference("main")


def test_a_revision_that_is_not_here(runs, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs.save(runs.speed(2.0), commit="b" * 40)
    assert store().reference("bbbbbbbb").runs[0].name == "0001"


def test_merged_runs_keep_what_failed(runs, tmp_path):
    from bitgate.history.merge import merge

    parts = [
        runs.save(runs.speed(2.0), bitgate={"failed": {}, "unfinished": 1}),
        runs.save(
            runs.speed(2.0, case="decode[b]"),
            bitgate={"failed": {"decode[c]": "broke"}, "unfinished": 2},
        ),
    ]
    merge(parts, tmp_path / "run.json")
    merged = read_run(tmp_path / "run.json")
    assert merged.failed == {"decode[c]": "broke"}
    assert merged.unfinished == 3
    assert "machines" not in json.loads((tmp_path / "run.json").read_text())["bitgate"]
