"""The saved runs as series: read every run that is sound, name whatever is not, and export it."""

import json
import math
from time import process_time

import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import csv, parquet

from bitgate.cli import main
from bitgate.history.export import COLUMNS
from bitgate.history.points import fits
from bitgate.history.reading import HistoryError, history_of, read
from bitgate.history.record import SCHEMA
from bitgate.history.saved import read_run
from bitgate.history.series import series

SCORED, DECODED = "perplexity[tiny-hqq-w4g64-text]", "decode[tiny-hqq-w4g64-b1]"
METRICS = {
    SCORED: {"perplexity_ratio": (1.2, 0.05), "packed_layers": 7},
    DECODED: {"speedup": (2.0, 0.1), "tokens_per_second": (30.0, 10.0)},
}


def names(history):
    return [(one.first.of.case, one.first.metric.name, len(one.points)) for one in series(history)]


def test_runs_come_in_the_order_of_their_time_whatever_folder_they_are_in(save_run, tmp_path):
    save_run(tmp_path / "b", 2, METRICS)
    save_run(tmp_path / "a", 3, METRICS)
    save_run(tmp_path / "c" / "d", 1, METRICS)
    history = read([tmp_path])
    assert [run.number for run in history.runs] == [1, 2, 3]
    assert history.skipped == []
    assert (SCORED, "perplexity_ratio", 3) in names(history)
    assert len(names(history)) == 4


def test_what_a_point_knows(save_run, tmp_path):
    save_run(tmp_path, 7, METRICS, commit="abc+", verdicts=[
        {"metric": "speedup", "outcome": "pass", "gate": "g", "text": "fine"}
    ])  # fmt: skip
    point = next(p for p in read([tmp_path]).points if p.metric.name == "speedup")
    assert (point.metric.low, point.metric.value, point.metric.high) == (1.9, 2.0, 2.1)
    assert (point.unit, point.better, point.outcome, point.exact) == ("1", "higher", "pass", False)
    of = point.of
    assert (of.case, of.model, of.recipe, of.method) == (DECODED, "tiny", "hqq-w4g64", "hqq")
    assert (of.bits, of.group_size, of.workload) == (4, 64, "decode b1")
    assert (of.commit, of.host, of.hardware, of.versions) == (
        "abc+",
        "here",
        "2 x a",
        {"torch": "2"},
    )


def test_absolute_times_are_never_compared_across_machines_ratios_are(save_run, tmp_path):
    for number, (host, cpu) in enumerate([("one", "a"), ("two", "a"), ("one", "b")]):
        save_run(tmp_path, number, METRICS, host=host, cpu=cpu)
    lengths = {}
    for _, metric, length in names(read([tmp_path])):
        lengths.setdefault(metric, []).append(length)
    assert lengths["tokens_per_second"] == [1, 1, 1]
    assert lengths["speedup"] == lengths["perplexity_ratio"] == [3]


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": "cpu-int4"},
        {"workload": {"kind": "perplexity", "name": "text", "tokens": 200}},
    ],
)
def test_another_kernel_or_protocol_is_another_series(save_run, tmp_path, changes):
    save_run(tmp_path, 1, METRICS)
    save_run(tmp_path, 2, METRICS, **changes)
    assert [n for case, name, n in names(read([tmp_path])) if name == "perplexity_ratio"] == [1, 1]


def test_the_number_of_a_device_does_not_matter(save_run, tmp_path):
    for number in (0, 1):
        run = save_run(tmp_path, number, METRICS)
        run.write_text(run.read_text().replace('"device": "cpu"', f'"device": "cuda:{number}"'))
    assert {n for *_, n in names(read([tmp_path]))} == {2}


def test_values_that_are_not_finite_are_left_out_and_counted(save_run, tmp_path):
    for number, value in enumerate([1.2, math.nan, math.inf, 1.3]):
        save_run(tmp_path, number, {SCORED: {"perplexity_ratio": (value, 0.1)}})
    (one,) = series(read([tmp_path]))
    assert one.values == [1.2, 1.3]
    assert one.left_out == 2


def test_a_run_that_is_in_a_merged_one_too_counts_once(save_run, tmp_path):
    run = save_run(tmp_path, 1, METRICS)
    copy = tmp_path / "merged.json"
    copy.write_text(run.read_text())
    history = read([tmp_path])
    assert len(history.runs) == 1
    (skipped,) = history.skipped
    assert "in another file" in str(skipped)


BROKEN = {
    "empty": ("", "is empty"),
    "cut": ('{"benchmarks": [', "no whole JSON"),
    "list": ("[]", "no run that pytest-benchmark has saved"),
    "number": ("3", "no run that pytest-benchmark has saved"),
    "foreign": ('{"answer": 42}', "no run that pytest-benchmark has saved"),
    "no table": ('{"benchmarks": [], "bitgate": null}', "no run that pytest-benchmark has saved"),
    "nothing": ('{"benchmarks": [], "datetime": "2026-01-01"}', "no records of Bitgate"),
    "others": (
        '{"benchmarks": [{"extra_info": {}}], "datetime": "2026-01-01"}', "no records of Bitgate"
    ),
    "deep": ("[" * 100_000, "no whole JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_the_reason(save_run, tmp_path, kind):
    save_run(tmp_path, 1, METRICS)
    text, reason = BROKEN[kind]
    (tmp_path / "0002_bad.json").write_text(text)
    history = read([tmp_path])
    assert len(history.runs) == 1
    (skipped,) = history.skipped
    assert skipped.path.name == "0002_bad.json"
    assert reason in skipped.reason


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "0002_bad.json").write_bytes(b"\xff\xfe\x00")
    assert "no JSON file" in read([tmp_path]).skipped[0].reason


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "0001_gone.json").symlink_to(tmp_path / "nowhere.json")
    assert read([tmp_path]).runs == []
    (skipped,) = read([tmp_path / "nowhere"]).skipped
    assert "no such file" in skipped.reason


def test_a_run_with_another_schema_or_a_damaged_record_is_left_out_whole(save_run, tmp_path):
    """As it is no reference of others either: what is left of it would pass for all of it."""
    run = save_run(tmp_path, 1, METRICS)
    content = json.loads(run.read_text())
    first, second = (b["extra_info"]["bitgate"] for b in content["benchmarks"])
    first["schema"] = SCHEMA + 1
    run.write_text(json.dumps(content))
    history = read([tmp_path])
    assert history.runs == history.points == []
    assert history.skipped[0].reason.startswith(f"{SCORED} is recorded in schema {SCHEMA + 1}")
    first["schema"] = SCHEMA
    del second["execution"]
    run.write_text(json.dumps(content))
    history = read([tmp_path])
    assert history.runs == []
    assert history.skipped[0].reason.startswith(f"{DECODED}: execution: Field required")


def test_a_recipe_without_a_name_is_read(save_run, tmp_path):
    run = save_run(tmp_path, 1, {DECODED: {"speedup": (2.0, 0.1)}})
    content = json.loads(run.read_text())
    del content["benchmarks"][0]["extra_info"]["bitgate"]["recipe"]["name"]
    run.write_text(json.dumps(content))
    assert read_run(run).passed
    (point,) = read([tmp_path]).points
    assert (point.of.recipe, point.of.bits) == ("", 4)


def test_runs_are_ordered_by_time_and_not_by_how_it_is_written(save_run, tmp_path):
    times = ("2026-01-01T23:30:00-02:00", "2026-01-02T01:00:00", "2026-01-02T03:00:00+02:30")
    for number, time in enumerate(times, 1):
        run = save_run(tmp_path, number, METRICS)
        run.write_text(json.dumps({**json.loads(run.read_text()), "datetime": time}))
    assert [run.number for run in read([tmp_path]).runs] == [3, 2, 1]


@pytest.mark.parametrize("value", ["fast", None, [1], {}])
def test_a_value_that_is_no_number(save_run, tmp_path, value):
    run = save_run(tmp_path, 1, {DECODED: {"speedup": (2.0, 0.1)}})
    content = json.loads(run.read_text())
    metrics = content["benchmarks"][0]["extra_info"]["bitgate"]["metrics"]
    metrics["speedup"]["value"] = value
    run.write_text(json.dumps(content))
    history = read([tmp_path])
    assert history.points == []
    assert history.skipped[0].reason.startswith(f"{DECODED}: metrics.speedup.value: ")


def test_an_empty_history_says_how_to_make_one(tmp_path):
    with pytest.raises(HistoryError, match="--benchmark-autosave"):
        history_of([tmp_path])
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(HistoryError, match=r"x\.json: is no whole JSON"):
        history_of([tmp_path])


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("tiny-hqq-w4g64-b1", True),
        (DECODED, True),
        ("*w4g64*", True),
        ("w4g64", True),
        ("decode[*]", True),
        ("tiny-*-b1", True),
        ("perplexity[*]", False),
        ("w8", False),
        ("*w4g64", False),
    ],
)
def test_which_cases_a_pattern_means(pattern, meant):
    assert fits(DECODED, pattern) == meant


# --- the table -----------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def history(save_run, tmp_path):
    folder = tmp_path / "runs"
    for number in range(3):
        save_run(folder, number, METRICS)
    save_run(folder, 3, {SCORED: {"perplexity_ratio": (math.nan, math.nan)}})
    return folder


def test_export_to_parquet(history, tmp_path):
    output = tmp_path / "all.parquet"
    done = invoke("export", "--history", history, "--output", output)
    assert done.exit_code == 0, done.output
    assert "13 rows of 4 runs" in done.output
    table = parquet.read_table(output)
    assert table.column_names == list(COLUMNS)
    assert table.num_rows == 13
    assert table.schema.field("datetime").type == pa.timestamp("us", tz="UTC")
    row = next(row for row in table.to_pylist() if row["metric"] == "speedup")
    assert (row["case"], row["value"], row["low"], row["high"]) == (DECODED, 2.0, 1.9, 2.1)
    assert math.isnan(table.to_pylist()[-1]["value"])


def test_export_to_csv_holds_the_same(history, tmp_path):
    for name in ("all.csv", "all.parquet"):
        assert invoke("export", "--history", history, "-o", tmp_path / name).exit_code == 0
    text, binary = csv.read_csv(tmp_path / "all.csv"), parquet.read_table(tmp_path / "all.parquet")
    assert text.column_names == binary.column_names
    for column in ("run", "number", "case", "metric", "bits", "unit", "kernel", "compiled"):
        assert text[column].to_pylist() == binary[column].to_pylist(), column
    assert text["value"].to_pylist()[:-1] == binary["value"].to_pylist()[:-1]


def test_export_of_a_part(history, tmp_path):
    output = tmp_path / "speed.csv"
    done = invoke("export", "--history", history, "-o", output, "--metric", "speedup", "-k", "*b1")
    assert done.exit_code == 0
    assert set(csv.read_csv(output)["metric"].to_pylist()) == {"speedup"}


@pytest.mark.parametrize("name", ["all.txt", "all", "missing/all.csv"])
def test_where_the_table_cannot_go(history, tmp_path, name):
    done = invoke("export", "--history", history, "-o", tmp_path / name)
    assert done.exit_code == 4
    assert name in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_export_of_nothing(tmp_path):
    done = invoke("export", "--history", tmp_path, "-o", tmp_path / "all.csv")
    assert done.exit_code == 4
    assert "no saved runs" in done.output


def test_many_runs_take_seconds(save_run, tmp_path):
    text = save_run(tmp_path, 0, METRICS).read_text()
    content = json.loads(text)
    content["benchmarks"] *= 8  # 16 cases of as many names
    for number, benchmark in enumerate(content["benchmarks"]):
        record = benchmark["extra_info"]["bitgate"]
        benchmark["extra_info"] = {"bitgate": {**record, "case": f"{record['case']}-{number}"}}
    for number in range(1, 251):
        content["datetime"] = f"2026-02-01T{number // 60:02d}:{number % 60:02d}:00"
        (tmp_path / f"{number:04d}_x.json").write_text(json.dumps(content))
    start = process_time()
    history = read([tmp_path])
    seconds = process_time() - start
    assert len(history.points) == 4 + 250 * 32
    assert seconds < 10  # 0.3 to 0.6; reading that is quadratic in points would take minutes
