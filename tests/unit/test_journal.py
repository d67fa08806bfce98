"""The journal of an unfinished run: what was appended is read back, whatever happened after."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitgate.catalog import load
from bitgate.gates import thresholds
from bitgate.history import origin
from bitgate.history.journal import (
    Header,
    Journal,
    JournalError,
    backup_of,
    backups,
    difference,
    fingerprints,
    gate_fingerprints,
    is_in_use,
    not_planned_any_more,
    read,
)
from bitgate.history.origin import changes
from bitgate.quantize import recipe_types

HEADER = Header(
    commit="abc",
    changes=None,
    cadence="commit",
    matrix={"quantize[a]": "1", "quantize[b]": "2"},
    gates={"kernel": "1", "quality": "2"},
    execution={"device": "cpu", "threads": 1, "timing": "on"},
    versions={"python": "3.11.0", "torch": "2.9.0"},
    selection="bench -k llama",
    order=["bench/test_a.py::test_a", "bench/test_a.py::test_b"],
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
PARCELS = st.fixed_dictionaries({"nodeid": st.text(), "result": VALUES, "benchmark": VALUES})


def written(path, *parcels, header=HEADER):
    journal = Journal(path)
    journal.begin(header)
    for parcel in parcels:
        journal.append(parcel)
    journal.close()
    return path.read_bytes()


def same(left, right):
    """Equal, where a NaN is equal to a NaN."""
    return json.dumps(left) == json.dumps(right)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "unfinished.jsonl"


@given(parcels=st.lists(PARCELS, unique_by=lambda parcel: parcel["nodeid"]))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_appended_is_read(path, parcels):
    written(path, *parcels)
    contents = read(path)
    assert contents.header == HEADER
    assert same(list(contents.parcels.values()), parcels)
    assert list(contents.lines.values()) == list(range(2, 2 + len(parcels)))
    assert contents.cut == 0


def test_numbers_keep_every_bit(path):
    numbers = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1 / 3]
    written(path, {"nodeid": "a", "items": numbers})
    found = read(path).parcels["a"]["items"]
    assert [x.hex() for x in found] == [x.hex() for x in numbers]


def test_each_line_is_on_disk_before_append_returns(path):
    journal = Journal(path)
    journal.begin(HEADER)
    for count in range(1, 4):
        journal.append({"nodeid": str(count)})
        assert len(read(path).parcels) == count
    journal.close()


def test_the_last_entry_of_a_test_counts(path):
    written(path, {"nodeid": "a", "n": 1}, {"nodeid": "b"}, {"nodeid": "a", "n": 2})
    contents = read(path)
    assert contents.parcels["a"]["n"] == 2
    assert contents.lines["a"] == 4


def test_a_last_line_cut_anywhere_is_left_out_and_written_again(path, tmp_path):
    one, two = {"nodeid": "a", "text": "line\nbreak \u2028 é"}, {"nodeid": "b", "n": [1.5, None]}
    whole = written(path, one, two)
    start = len(whole[: whole[:-1].rindex(b"\n") + 1])
    other = tmp_path / "cut.jsonl"
    for end in range(start, len(whole)):
        other.write_bytes(whole[:end])
        contents = read(other)
        # without only its newline, the line says all that it has to say
        expected = [one, two] if end == len(whole) - 1 else [one]
        assert list(contents.parcels.values()) == expected
        assert (contents.kept, contents.cut) == (
            (end, 0) if end == len(whole) - 1 else (start, end - start)
        )
        journal = Journal(other)
        journal.go_on(contents)
        journal.append(two)
        journal.close()
        assert list(read(other).parcels.values()) == [one, two]


def test_a_cut_header_leaves_nothing(path):
    whole = written(path)
    for end in range(len(whole) - 1):
        path.write_bytes(whole[:end])
        contents = read(path)
        assert contents.header is None
        assert contents.parcels == {}


def test_a_tail_of_zeros_is_a_cut_line(path):
    """What some file systems leave after a power failure."""
    path.write_bytes(written(path, {"nodeid": "a"}) + b"\0" * 100)
    contents = read(path)
    assert list(contents.parcels) == ["a"]
    assert contents.cut == 100


@pytest.mark.parametrize(
    "line", [b'{"nodeid": "b", "resu', b"[1]", b'{"result": 1}', b"\xff\xfe", b"", b"\0\0"]
)
def test_a_damaged_line_in_the_middle_is_named(path, line):
    lines = written(path, *({"nodeid": name} for name in "abc")).split(b"\n")
    lines[2] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match=r"unfinished.jsonl: line 3 is damaged .*delete that"):
        read(path)


def test_a_damaged_header_is_named(path):
    rest = written(path, {"nodeid": "a"}).split(b"\n", 1)[1]
    path.write_bytes(b'{"schema": 2, "commit": "abc"}\n' + rest)
    with pytest.raises(JournalError, match=r"line 1 is damaged .*delete the file; everything"):
        read(path)


def test_another_schema_is_refused(path):
    written(path, header=replace(HEADER, schema=7))
    with pytest.raises(JournalError, match="has schema 7, this Bitgate reads 2"):
        read(path)


def test_beginning_keeps_the_newest_backups(path):
    assert backup_of(path).name == "unfinished.jsonl.1"
    written_ = [written(path, {"nodeid": str(number)}) for number in range(12)]
    assert path.read_bytes() == written_[-1]
    assert [old.name for old in backups(path)] == [f"unfinished.jsonl.{n}" for n in range(7, 12)]
    assert [old.read_bytes() for old in backups(path)] == written_[6:11]
    assert backup_of(path).name == "unfinished.jsonl.12"


def test_whether_it_is_in_use(path):
    written(path)
    assert not is_in_use(path)
    journal = Journal(path)
    assert is_in_use(path)
    journal.close()
    assert not is_in_use(path)


def test_one_writer_at_a_time(path):
    journal = Journal(path)
    journal.begin(HEADER)
    with pytest.raises(JournalError, match="being written by another run"):
        Journal(path)
    journal.remove()
    assert not path.exists()
    Journal(path).close()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt("while writing")]
)
def test_what_is_not_written_whole_leaves_whole_lines(path, monkeypatch, error):
    journal = Journal(path)
    journal.begin(HEADER)
    journal.append({"nodeid": "a"})

    def fails(descriptor):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)
        with pytest.raises(type(error)):
            journal.append({"nodeid": "b"})
    journal.append({"nodeid": "c"})
    journal.close()
    assert list(read(path).parcels) == ["a", "c"]


# --- which run it is of --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"commit": "def"}, "commit abc -> def"),
        ({"commit": None}, "commit abc -> none"),
        ({"changes": "123"}, "uncommitted changes none -> 123"),
        ({"cadence": "nightly"}, "cadence commit -> nightly"),
        ({"selection": "bench"}, "selection bench -k llama -> bench"),
        ({"selection": ""}, "selection bench -k llama -> everything"),
        ({"execution": {**HEADER.execution, "threads": 2}}, "threads 1 -> 2"),
        ({"execution": {**HEADER.execution, "device": "cuda"}}, "device cpu -> cuda"),
        ({"versions": {**HEADER.versions, "torch": "2.9.1"}}, "torch 2.9.0 -> 2.9.1"),
        ({"versions": {"python": "3.11.0"}}, "torch 2.9.0 -> none"),
        ({"versions": {**HEADER.versions, "hqq": "1"}}, "hqq none -> 1"),
        (
            {"matrix": {"quantize[b]": "3", "quantize[c]": "4"}},
            "matrix differs: quantize[c] new, quantize[a] gone, quantize[b] defined otherwise",
        ),
        ({"gates": {**HEADER.gates, "kernel": "3"}}, "gates differ: kernel defined otherwise"),
        ({"gates": {"quality": "2", "new": "1"}}, "gates differ: new new, kernel gone"),
        (
            {"gates": {"quality": "2", "kernel": "1"}},
            "gates differ: their order, of which the last one that fits a case counts",
        ),
        (
            {"matrix": {**HEADER.matrix, **{str(n): "" for n in range(5)}}},
            "matrix differs: 0, 1, 2 and 2 more new",
        ),
    ],
)
def test_every_difference_has_its_words(change, text):
    assert difference(HEADER, replace(HEADER, **change)) == [text]


def test_all_differences_are_named_and_order_is_none():
    other = replace(HEADER, commit="def", cadence="weekly", order=[])
    assert difference(HEADER, other) == ["commit abc -> def", "cadence commit -> weekly"]
    assert difference(HEADER, replace(HEADER, order=[])) == []


def test_tests_that_are_missing_are_named():
    assert not_planned_any_more("ab", "cab") is None
    assert not_planned_any_more([], "a") is None
    assert not_planned_any_more("abcdef", "be") == "selection without a, c, d and 1 more"


def test_gates_are_compared_by_what_they_say(tmp_path):
    path = tmp_path / "thresholds.toml"
    gate = '[[gate]]\nname = "w4"\nmatch = { bits = 4 }\nrequire.size_mib = { max = %s }\n'

    def of(text):
        path.write_text(text)
        return gate_fingerprints(thresholds.load(path).gates)

    first = of(gate % 1)
    assert list(first) == ["w4"]
    assert of("# a word\n" + gate % "1.0") == first
    assert of(gate % 2) != first
    assert of(gate.replace("4 }", "8 }") % 1) != first


MATRIX = """
[decode.b1]
output = {output}

[[matrix]]
cadence = "commit"
models = ["tiny"]
recipes = ["hqq-w4g64"]
quantize = true
perplexity = ["words"]
decode = ["b1"]
"""
MODELS = '[model.tiny]\nfamily = "llama"\nsource = {{ kind = "local", path = "{path}" }}\n'
DATASETS = (
    '[dataset.words]\nformat = "plain"\nsource = {{ kind = "local", path = "w" }}\nseed = {seed}\n'
)


@pytest.fixture
def cases(tmp_path):
    def make(*, path="tiny", seed=0, output=32):
        (tmp_path / "models.toml").write_text(MODELS.format(path=path))
        (tmp_path / "datasets.toml").write_text(DATASETS.format(seed=seed))
        (tmp_path / "matrix.toml").write_text(MATRIX.format(output=output))
        return fingerprints(load(tmp_path, recipe_types()).cases())

    return make


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, set()),
        ({"path": "other"}, {"quantize", "perplexity", "decode"}),
        ({"seed": 1}, {"perplexity"}),
        ({"output": 64}, {"decode"}),
    ],
)
def test_fingerprints_cover_the_whole_definition(cases, change, kinds):
    before, now = cases(), cases(**change)
    assert list(before) == list(now)
    assert {key.split("[")[0] for key in now if before[key] != now[key]} == kinds


def test_uncommitted_changes_but_those_of_gates(tmp_path, monkeypatch):
    import subprocess

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(origin, "checkout", tmp_path)
    assert changes(but="thresholds.toml") is None
    code, rules = tmp_path / "code.py", tmp_path / "deep" / "thresholds.toml"
    rules.parent.mkdir()
    code.write_text("a")
    rules.write_text("a")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert changes(but="thresholds.toml") is None
    rules.write_text("b")
    assert changes(but="thresholds.toml") is None
    code.write_text("b")
    changed = changes(but="thresholds.toml")
    assert changed
    code.write_text("c")
    assert changes(but="thresholds.toml") not in (None, changed)
    git("commit", "-a", "-m", "second")
    assert changes() is None


def test_files_that_git_does_not_know_are_changes_if_they_are_code(tmp_path, monkeypatch):
    import subprocess

    folder = tmp_path / "deep"
    folder.mkdir()
    monkeypatch.setattr(origin, "checkout", folder)
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, "commit", "-qm", "first"], cwd=tmp_path, check=True)
    for left in ("ignored.py", "run.json", "deep/.benchmarks", "deep/thresholds.toml"):
        (tmp_path / left).write_text("a")
    assert changes(but="thresholds.toml") is None
    seen = {None}
    for new in ("conftest.py", "deep/test é.py", "deep/models.toml"):
        for text in ("a", "b"):
            (tmp_path / new).write_text(text)
            found = changes(but="thresholds.toml")
            assert found not in seen
            assert changes(but="thresholds.toml") == found
            seen.add(found)
    monkeypatch.setattr(origin, "checkout", tmp_path)
    assert changes(but="thresholds.toml") == found
