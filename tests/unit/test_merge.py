"""Runs of parts made one: whole, in one order, or refused with the reason and the file."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from bitgate.cli import main
from bitgate.history.merge import MergeError, merge
from bitgate.history.runs import records_of

pytest_plugins = ["pytester"]

STATS = {
    **dict.fromkeys(("min", "max", "mean", "median", "q1", "q3", "total"), 0.5),
    **dict.fromkeys(("stddev", "iqr", "ld15iqr", "hd15iqr"), 0.5),
    **dict.fromkeys(("rounds", "iterations", "iqr_outliers", "stddev_outliers"), 1),
    "ops": 2.0,
    "outliers": "1;1",
    "data": [0.5],
}


def benchmark(name, **changes):
    record = {"schema": 1, "case": f"decode[{name}]", "commit": "abc", "versions": {"torch": "2"}}
    return {
        "group": None,
        "name": f"test_decode[{name}]",
        "params": None,
        "param": name,
        "fullname": f"bench/test_decode.py::test_decode[{name}]",
        "extra_info": {"bitgate": record | changes},
        "options": {},
        "stats": STATS,
    }


def run(path, *names, node="one", items=True, **changes):
    """A saved run of some cases, with a row of scores for each."""
    content = {
        "machine_info": {"node": node, "cpu": {"brand_raw": "a"}},
        "commit_info": {"id": "abc", "dirty": False},
        "benchmarks": [benchmark(name, **changes) for name in names],
        "datetime": f"2026-01-0{len(names)}T00:00:00",
        "version": "5.3.1",
    }
    path.write_text(json.dumps(content))
    if items:
        case = pa.array([f"decode[{name}]" for name in names]).dictionary_encode()
        columns = {"case": case, "item": pa.array(np.arange(len(names)))}
        # not every part has measured every quantity
        columns[f"of_{node}"] = pa.array([1.5] * len(names))
        parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path


@pytest.fixture
def parts(tmp_path):
    return [
        run(tmp_path / "shard-1.json", "c", "a", node="one"),
        run(tmp_path / "shard-2.json", "b", node="two"),
    ]


def left_in(folder):
    return {path.name for path in folder.iterdir()} - {
        *("shard-1.json", "shard-1.parquet", "shard-2.json", "shard-2.parquet")
    }


def test_one_run_of_two(parts, tmp_path):
    output = tmp_path / "run.json"
    assert merge(parts, output) == []
    merged = json.loads(output.read_text())
    assert [b["param"] for b in merged["benchmarks"]] == ["a", "b", "c"]
    assert merged["benchmarks"][1] == benchmark("b")
    assert set(records_of(output)) == {"decode[a]", "decode[b]", "decode[c]"}
    assert merged["machine_info"]["node"] == "one"
    assert [m["machine_info"]["node"] for m in merged["bitgate"]["machines"]] == ["one", "two"]
    assert merged["datetime"] == "2026-01-02T00:00:00"
    rows = parquet.read_table(output.with_suffix(".parquet")).to_pylist()
    assert sorted(row["case"] for row in rows) == ["decode[a]", "decode[b]", "decode[c]"]
    assert all((row["of_one"] is None) == (row["case"] == "decode[b]") for row in rows)
    assert left_in(tmp_path) == {"run.json", "run.parquet"}


def test_the_order_of_the_parts_changes_no_benchmark(parts, tmp_path):
    outputs = [tmp_path / "forward.json", tmp_path / "backward.json"]
    merge(parts, outputs[0])
    merge(parts[::-1], outputs[1])
    left, right = (json.loads(path.read_text())["benchmarks"] for path in outputs)
    assert left == right


def test_merged_runs_can_be_merged(parts, tmp_path):
    merge(parts, tmp_path / "half.json")
    third = run(tmp_path / "third.json", "d", node="three")
    merge([tmp_path / "half.json", third], tmp_path / "run.json")
    machines = json.loads((tmp_path / "run.json").read_text())["bitgate"]["machines"]
    assert [m["machine_info"]["node"] for m in machines] == ["one", "two", "three"]
    assert len(records_of(tmp_path / "run.json")) == 4


def test_one_machine_needs_no_list(tmp_path):
    parts = [run(tmp_path / f"{name}.json", name) for name in "ab"]
    merge(parts, tmp_path / "run.json")
    assert "bitgate" not in json.loads((tmp_path / "run.json").read_text())


def test_benchmarks_without_a_record_come_along(parts, tmp_path):
    plain = benchmark("plain") | {"extra_info": {}}
    content = json.loads(parts[0].read_text())
    content["benchmarks"].append(plain)
    parts[0].write_text(json.dumps(content))
    merge(parts, tmp_path / "run.json")
    assert plain in json.loads((tmp_path / "run.json").read_text())["benchmarks"]


def test_nan_survives(tmp_path):
    part = run(tmp_path / "part.json", "a", metrics={"speedup": {"value": float("nan")}})
    merge([part], tmp_path / "run.json")
    (record,) = records_of(tmp_path / "run.json").values()
    assert np.isnan(record["metrics"]["speedup"]["value"])


def test_pytest_benchmark_reads_it(parts, tmp_path):
    merge(parts, tmp_path / "run.json")
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(tmp_path / "run.json")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(f"test_decode[{name}]" in done.stdout for name in "abc")


def refused(parts, tmp_path, *words):
    with pytest.raises(MergeError) as error:
        merge(parts, tmp_path / "run.json")
    for word in words:
        assert word in str(error.value)
    assert left_in(tmp_path) == set()


def test_another_schema(parts, tmp_path):
    run(parts[1], "b", schema=2)
    refused(parts, tmp_path, "shard-2.json", "decode[b]", "schema 2", "schema 1")


def test_the_same_case_twice(parts, tmp_path):
    run(parts[1], "b", "a")
    refused(parts, tmp_path, "decode[a] is in both", "shard-1.json and", "shard-2.json")


def test_the_same_run_twice(parts, tmp_path):
    refused([*parts, parts[0]], tmp_path, "shard-1.json is given twice")


@pytest.mark.parametrize("other", ["def", "abc+"])
def test_another_commit(parts, tmp_path, other):
    run(parts[1], "b", commit=other)
    refused(parts, tmp_path, "shard-1.json was measured at commit abc", f"shard-2.json at {other}")


def test_the_time_is_that_of_the_last_part(parts, tmp_path):
    times = ("2026-01-01T23:30:00-02:00", "2026-01-02T01:00:00+00:00")
    for path, time in zip(parts, times, strict=True):
        path.write_text(json.dumps({**json.loads(path.read_text()), "datetime": time}))
    merge(parts, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["datetime"] == times[0]


def told(path, **changes):
    """What a run says of the whole run that it is a part of."""
    content = json.loads(path.read_text())
    content["bitgate"] = {
        "failed": {},
        "unfinished": 0,
        "absent": [],
        "due": [f"decode[{name}]" for name in "abc"],
        "matrix": "1",
        "gates": "2",
        "changes": None,
        **changes,
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("matrix", "other cases are due"),
        ("gates", "the gates are others"),
        ("changes", "the uncommitted changes are others"),
    ],
)
def test_parts_of_other_runs(parts, tmp_path, key, words):
    told(parts[0])
    told(parts[1], **{key: "9"})
    refused(parts, tmp_path, "shard-1.json and", "shard-2.json are no parts of one run", words)
    content = json.loads(parts[1].read_text())
    del content["bitgate"][key]  # an earlier run does not say
    parts[1].write_text(json.dumps(content))
    merge(parts, tmp_path / "run.json")


def test_a_part_that_is_missing(parts, tmp_path):
    told(parts[0])
    told(parts[1])
    refused(parts[:1], tmp_path, "1 cases were due and are in no part: decode[b];", "--partial")
    output = tmp_path / "run.json"
    command = ["merge", str(parts[0]), "--output", str(output)]
    assert CliRunner().invoke(main, command).exit_code == 4
    partial = CliRunner().invoke(main, [*command, "--partial"])
    assert partial.exit_code == 0
    assert "WARNING: 1 cases were due and are in no part: decode[b]" in partial.stderr
    # a part of a part is still one
    assert merge([output, parts[1]], tmp_path / "whole.json") == []
    whole = json.loads((tmp_path / "whole.json").read_text())["bitgate"]
    assert whole["due"] == ["decode[a]", "decode[b]", "decode[c]"]
    assert (whole["matrix"], whole["gates"], whole["changes"]) == ("1", "2", None)


def test_what_a_part_could_not_measure_is_not_missing(parts, tmp_path):
    left_out = {"case": "decode[d]", "model": "m", "recipe": {}, "why": "no room", "failed": False}
    due = [f"decode[{name}]" for name in "abcde"]
    told(parts[0], due=due, absent=[left_out])
    told(parts[1], due=due, failed={"decode[e]": "broke"})
    merge(parts, tmp_path / "run.json")


def test_parts_that_were_really_measured(free_project, pytester):
    free_project(pytester.path)
    for part in ("quantize", "perplexity"):
        done = pytester.runpytest_subprocess(
            *("bench", "--threads=1", "-m", part, f"--benchmark-json={part}.json")
        )
        assert done.ret == 0
    quantize, perplexity = pytester.path / "quantize.json", pytester.path / "perplexity.json"
    with pytest.raises(MergeError, match=r"2 cases were due and are in no part: perplexity\["):
        merge([quantize], pytester.path / "run.json")
    assert merge([quantize, perplexity], pytester.path / "run.json") == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is no whole JSON file"),
        ('{"benchmarks": [', "is no whole JSON file"),
        ("\xff", "is no whole JSON file"),
        ("[]", "is no run that pytest-benchmark has saved"),
        ('{"benchmarks": []}', "is no run that pytest-benchmark has saved"),
        ('{"benchmarks": [{"fullname": "a"}]}', "is no run that pytest-benchmark has saved"),
    ],
)
def test_no_run(parts, tmp_path, content, words):
    parts[1].write_bytes(content.encode("latin-1"))
    refused(parts, tmp_path, f"shard-2.json {words}")


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("benchmarks",), None, "benchmarks: Input should be a valid list"),
        (("benchmarks",), {"a": 1}, "benchmarks: Input should be a valid list"),
        (("benchmarks", 0), "text", "benchmarks.0: Input"),
        (("benchmarks", 0, "fullname"), 7, "benchmarks.0.fullname"),
        (("benchmarks", 0, "stats"), [], "benchmarks.0.stats"),
        (("benchmarks", 0, "extra_info"), None, "benchmarks.0.extra_info"),
        (("benchmarks", 0, "extra_info"), [], "benchmarks.0.extra_info"),
        (("benchmarks", 0, "extra_info", "bitgate"), "text", "extra_info.bitgate"),
        (("benchmarks", 0, "extra_info", "bitgate"), {}, "extra_info.bitgate.schema: Field req"),
        (("benchmarks", 0, "extra_info", "bitgate", "case"), ["a"], "extra_info.bitgate.case"),
        (("benchmarks", 0, "extra_info", "bitgate", "commit"), {}, "extra_info.bitgate.commit"),
        (("benchmarks", 0, "extra_info", "bitgate", "versions"), [1], "bitgate.versions"),
        (("machine_info",), "text", "machine_info: Input"),
        (("commit_info",), None, "commit_info: Input"),
        (("datetime",), 0, "datetime: Input"),
        (("datetime",), "yesterday", "datetime: Value error, expected a time"),
        (("bitgate",), None, "bitgate: Input"),
        (("bitgate",), {"failed": ["a"]}, "bitgate.failed: Input"),
        (("bitgate",), {"unfinished": "1"}, "bitgate.unfinished: Input"),
        (("bitgate",), {"machines": {"a": 1}}, "bitgate.machines: Input"),
        (("bitgate",), {"machines": [{"run": "a"}]}, "bitgate.machines.0.machine_info: Field"),
    ],
)
def test_odd_content_is_named(parts, tmp_path, path, value, where):
    content = json.loads(parts[1].read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    parts[1].write_text(json.dumps(content))
    refused(parts, tmp_path, "shard-2.json is no run that pytest-benchmark has saved: ", where)


@pytest.mark.parametrize("content", ["null", "7", '"text"', "[" * 100_000])
def test_what_is_no_table(parts, tmp_path, content):
    parts[1].write_text(content)
    refused(parts, tmp_path, "shard-2.json is no ")


def test_scores_that_do_not_fit_together(parts, tmp_path):
    table = parquet.read_table(parts[1].with_suffix(".parquet")).to_pandas()
    table["item"] = ["a word"]
    parquet.write_table(pa.Table.from_pandas(table), parts[1].with_suffix(".parquet"))
    refused(parts, tmp_path, "shard-1.parquet", "shard-2.parquet do not fit together")


@pytest.mark.parametrize("name", ["shard-1", "shard-1.parquet", "run", "run.parquet", "run.JSON"])
def test_output_that_is_no_json_file(parts, tmp_path, name):
    """It could be, or lie beside, what is read."""
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(MergeError, match=r"does not end in \.json"):
        merge(parts, tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_output_onto_what_is_read(parts, tmp_path, link, suffix):
    getattr(tmp_path.joinpath(f"run{suffix}"), link)(parts[1].with_suffix(suffix))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(MergeError, match=r"name another --output"):
        merge(parts, tmp_path / "run.json")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_scores_onto_those_of_a_part_without_suffix(parts, tmp_path):
    parts[0].rename(tmp_path / "shard-1")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(MergeError, match=r"shard-1\.parquet is to be written, and .* to be read"):
        merge([tmp_path / "shard-1", parts[1]], tmp_path / "shard-1.json")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_is_missing(parts, tmp_path):
    refused([*parts, tmp_path / "shard-3.json"], tmp_path, "shard-3.json cannot be read: No such")


def test_no_records(parts, tmp_path):
    content = json.loads(parts[1].read_text())
    content["benchmarks"][0]["extra_info"] = {}
    parts[1].write_text(json.dumps(content))
    refused(parts, tmp_path, "shard-2.json holds no records of Bitgate")


def test_broken_scores(parts, tmp_path):
    parts[1].with_suffix(".parquet").write_bytes(b"PAR1")
    refused(parts, tmp_path, "shard-2.parquet")


def test_missing_scores_are_said_to_be(parts, tmp_path):
    parts[1].with_suffix(".parquet").unlink()
    (warning,) = merge(parts, tmp_path / "run.json")
    assert "shard-2.parquet is missing" in warning
    assert parquet.read_table(tmp_path / "run.parquet").num_rows == 2


def test_scores_of_another_run_do_not_stay(parts, tmp_path):
    (tmp_path / "run.parquet").write_bytes(b"of another run")
    for part in parts:
        part.with_suffix(".parquet").unlink()
    assert len(merge(parts, tmp_path / "run.json")) == 2
    assert not (tmp_path / "run.parquet").exists()


def test_other_versions_are_said_to_be(parts, tmp_path):
    run(parts[1], "b", versions={"torch": "3", "gemlite": "1"})
    warnings = merge(parts, tmp_path / "run.json")
    assert [w.split(" in ")[0] for w in warnings] == ["gemlite differs: none", "torch differs: 2"]


def test_the_command(parts, tmp_path):
    output = tmp_path / "run.json"
    command = ["merge", *map(str, parts), "--output", str(output)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"2 runs merged in {output}\n"
    assert len(records_of(output)) == 3
    before = output.read_bytes()
    run(parts[1], "a", items=False)
    refusing = CliRunner().invoke(main, command)
    assert refusing.exit_code == 4
    assert "ERROR: decode[a] is in both" in refusing.stderr
    assert output.read_bytes() == before
    onto_a_part = CliRunner().invoke(main, ["merge", str(parts[0]), "-o", str(parts[0])])
    assert onto_a_part.exit_code == 4
    assert "name another --output" in onto_a_part.stderr


def test_what_no_part_has_measured_is_still_named(tmp_path):
    parts = [run(tmp_path / f"{name}.json", name) for name in "ab"]
    for path, missing in zip(parts, ("bc", "c"), strict=True):
        content = json.loads(path.read_text())
        absent = [
            {
                "case": f"decode[{name}]",
                "model": "m",
                "recipe": {"name": name},
                "why": f"not in {path.stem}",
                "failed": False,
            }
            for name in missing
        ]
        content["bitgate"] = {"failed": {}, "unfinished": 0, "absent": absent}
        path.write_text(json.dumps(content))
    merge(parts, tmp_path / "all.json")
    found = json.loads((tmp_path / "all.json").read_text())["bitgate"]["absent"]
    assert [(one["case"], one["why"]) for one in found] == [("decode[c]", "not in a")]
