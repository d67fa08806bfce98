"""`bitgate accept` and `bitgate compare` as they are typed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from bitgate.cli import main
from bitgate.gates.tolerances import DEFAULTS
from bitgate.history.against import against
from bitgate.history.change import regressions
from bitgate.history.saved import read_run
from bitgate.history.store import Store

NLL = np.random.default_rng(0).normal(320, 60, 32)


@pytest.fixture
def bitgate(runs, tmp_path, monkeypatch):
    """Runs a command in the folder that has `runs` as its history."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(command, *arguments):
        history = ("--history", "runs")
        return CliRunner().invoke(main, [command, *map(str, arguments), *history])

    return run


# --- compare -------------------------------------------------------------------------------


def test_nothing_changed(runs, bitgate):
    for _ in range(2):
        runs.save(runs.quality(NLL), runs.speed(2.0), runs.sizes(size_mib=100, memory_mib=90))
    done = bitgate("compare", "0001", "0002")
    assert done.exit_code == 0, done.output
    for words in ("quality", "size", "memory", "speed", "perplexity[a]", "✓ unchanged"):
        assert words in done.output
    assert done.output.splitlines()[-1] == (
        "7 unchanged, 1 recorded (Holm's correction over the 1 with any noise, 2 %)"
    )
    assert "0002 (aaaaaaa), 2026-01-01 00:02:00, 3 cases" in done.output


def test_a_regression_exits_with_1_in_every_format(runs, bitgate, tmp_path):
    runs.save(runs.quality(NLL, base=NLL - 20), runs.sizes(size_mib=100))
    runs.save(runs.quality(NLL + 5, base=NLL - 20), runs.sizes(size_mib=120))
    text = bitgate("compare", "0001", "0002")
    assert text.exit_code == 1
    assert "✗ quantize[a]: size_mib 120 is 20 % worse than 100 in 0001 (exact" in text.output

    markdown = bitgate("compare", "0001", "0002", "--format", "markdown")
    assert markdown.exit_code == 1
    assert markdown.output.startswith("**3 regressions, 2 unchanged**")
    assert "| `quantize[a]` | size_mib | 100 | 120 | +20 % | ✗ regression |" in markdown.output

    done = bitgate("compare", "0001", "0002", "--format", "json", "-o", tmp_path / "out.json")
    assert done.exit_code == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["counts"] == {"regression": 3, "unchanged": 2}
    (size,) = (c for c in found["changes"] if c["metric"] == "size_mib")
    assert size["a"]["value"] == 100
    assert size["change"] == pytest.approx(0.2)
    assert size["verdict"] == "regression"
    assert found["b"]["runs"][0]["commit"] == "a" * 40


def test_json_has_no_numbers_that_json_does_not_have(runs, bitgate):
    record, items = runs.sizes(size_mib=100)
    record["metrics"]["size_mib"]["value"] = float("nan")
    runs.save(runs.sizes(size_mib=100))
    runs.save((record, items))
    done = bitgate("compare", "0001", "0002", "--format", "json")
    assert done.exit_code == 1
    found = json.loads(done.output, parse_constant=lambda name: pytest.fail(name))
    assert found["changes"][0]["b"]["value"] is None


def test_what_is_missing_is_shown(runs, bitgate):
    runs.save(runs.speed(2.0), runs.speed(2.0, case="decode[gone]"))
    runs.save(runs.speed(2.0))
    done = bitgate("compare", "0001", "0002")
    assert done.exit_code == 0
    assert "? decode[gone]: missing: not in B (0002 (aaaaaaa))" in done.output
    assert bitgate("compare", "0001", "0002", "--fail-on", "missing").exit_code == 1
    assert bitgate("compare", "0001", "0002", "--bisect").exit_code == 125
    one = bitgate("compare", "0001", "0002", "-k", "a", "--fail-on", "missing")
    assert one.exit_code == 0
    assert "gone" not in one.output


def test_what_cannot_be_compared_at_all(runs, bitgate):
    runs.save(runs.speed(2.0, hardware="A"))
    runs.save(runs.speed(1.0, hardware="B"))
    for arguments, status in (((), 4), (("--bisect",), 125)):
        done = bitgate("compare", "0001", "0002", *arguments)
        assert done.exit_code == status
        assert "speedup not comparable: hardware A then, B now" in done.output
        assert "ERROR: nothing of 0001 and 0002 can be compared" in done.output


def test_runs_that_are_not_there(runs, bitgate):
    runs.save(runs.speed(2.0))
    done = bitgate("compare", "0001", "v9")
    assert done.exit_code == 4
    assert "ERROR: v9: no such file, no saved run of this number and no git revision" in done.output
    assert "there is 0001 (aaaaaaa)" in done.output
    assert bitgate("compare", "0001", "v9", "--bisect").exit_code == 125
    (runs.folder / "0002_run.json").write_text("{")
    done = bitgate("compare", "0001", "0002")
    assert done.exit_code == 4
    assert "is no whole JSON file" in done.output


def test_files_that_cannot_be_read_are_named(runs, bitgate):
    for _ in range(2):
        runs.save(runs.speed(2.0))
    (runs.folder / "0003_run.json").write_text("")
    done = bitgate("compare", "0001", "0002")
    assert done.exit_code == 0
    assert "WARNING: left out: runs/0003_run.json is empty" in done.output


def test_tolerances_are_those_of_the_gates(runs, bitgate, tmp_path):
    for size in (100, 101):
        runs.save(runs.sizes(size_mib=size))
    assert bitgate("compare", "0001", "0002").exit_code == 1
    (tmp_path / "thresholds.toml").write_text("[against]\nsize_mib = 0.02\n")
    assert bitgate("compare", "0001", "0002").exit_code == 0
    (tmp_path / "thresholds.toml").write_text("[against]\nsize_mb = 0.02\n")
    done = bitgate("compare", "0001", "0002")
    assert done.exit_code == 4
    assert "[against]: size_mb: nothing is compared that is called so" in done.output
    assert "did you mean 'size_mib'?" in done.output


# --- accept --------------------------------------------------------------------------------


def test_accepting_and_comparing(runs, bitgate, tmp_path):
    runs.save(runs.quality(NLL, base=NLL - 20), runs.speed(2.0))
    done = bitgate("accept", "0001", "--reason", "good enough")
    assert done.exit_code == 0, done.output
    assert "accepted 2 cases of 0001 (aaaaaaa)" in done.output
    accepted = read_run(tmp_path / "accepted.json")
    assert set(accepted.records) == {"perplexity[a]", "decode[a]"}
    content = json.loads((tmp_path / "accepted.json").read_text())
    note = content["benchmarks"][0]["extra_info"]["bitgate_accepted"]
    assert note["reason"] == "good enough"
    assert note["run"] == "0001_run.json"
    assert note["commit"] == "a" * 40
    assert note["by"]
    assert "data" not in content["benchmarks"][0]["stats"]

    runs.save(runs.quality(NLL + 5, base=NLL - 20), runs.speed(2.0))
    done = bitgate("compare", "accepted", "0002")
    assert done.exit_code == 1
    assert "worse than" in done.output

    # what changes is said when it is accepted
    done = bitgate("accept", "0002", "--reason", "as worse as it is", "-k", "perplexity*")
    assert done.exit_code == 0
    assert "since the former baseline: 2 regressions" in done.output
    assert bitgate("compare", "accepted", "0002").exit_code == 0
    notes = {
        b["extra_info"]["bitgate"]["case"]: b["extra_info"]["bitgate_accepted"]["reason"]
        for b in json.loads((tmp_path / "accepted.json").read_text())["benchmarks"]
    }
    assert notes == {"perplexity[a]": "as worse as it is", "decode[a]": "good enough"}


def test_one_baseline_for_each_kind_of_machine(runs, bitgate, tmp_path):
    for hardware, nll in (("A", NLL), ("B", NLL + 1)):
        runs.save(runs.quality(nll, hardware=hardware))
        assert bitgate("accept", "latest", "--reason", hardware).exit_code == 0
    accepted = read_run(tmp_path / "accepted.json")
    records = accepted.records["perplexity[a]"]
    assert [record.hardware for record in records] == ["A", "B"]
    scores = [accepted.side(record, at).items["nll"] for at, record in enumerate(records)]
    np.testing.assert_array_equal(scores, [NLL, NLL + 1])
    # each machine is compared with its own
    assert bitgate("compare", "accepted", "0001").exit_code == 0
    assert bitgate("compare", "accepted", "0002").exit_code == 0
    # and is replaced by its own
    runs.save(runs.quality(NLL + 2, hardware="A"))
    assert bitgate("accept", "0003", "--reason", "again").exit_code == 0
    assert len(read_run(tmp_path / "accepted.json").records["perplexity[a]"]) == 2


def test_what_failed_is_no_baseline(runs, bitgate, tmp_path):
    runs.save(runs.speed(2.0), runs.quality(NLL, outcome="fail"))
    done = bitgate("accept", "0001", "--reason", "x")
    assert done.exit_code == 4
    assert "has failed: perplexity[a]: what failed is no baseline" in done.output
    assert not (tmp_path / "accepted.json").exists()
    assert bitgate("accept", "0001", "--reason", "x", "-k", "decode*").exit_code == 0
    done = bitgate("accept", "0001", "--reason", "x", "--even-failed", "known since May")
    assert done.exit_code == 0
    content = json.loads((tmp_path / "accepted.json").read_text())
    note = content["benchmarks"][-1]["extra_info"]["bitgate_accepted"]
    assert note["even_failed"] == "known since May"


@pytest.mark.parametrize(
    ("make", "case"),
    [
        (lambda runs: runs.quality(NLL), "perplexity[a]"),
        (lambda runs: (runs.sizes(size_mib=100)[0], {"layer": np.array(["x"])}), "quantize[a]"),
    ],
)
def test_what_lacks_its_scores_is_no_baseline(runs, bitgate, tmp_path, make, case):
    """Nothing could be compared with it."""
    path = runs.save(make(runs), runs.speed(2.0))
    scores = path.with_suffix(".parquet")
    kept = scores.read_bytes()
    scores.unlink()
    done = bitgate("accept", "0001", "--reason", "x")
    assert done.exit_code == 4
    assert f"0001 (aaaaaaa) has no per-item scores of {case}: runs/0001_run.parquet is missing" in (
        done.output
    )
    assert "put that file back" in done.output
    assert not (tmp_path / "accepted.json").exists()
    speed = bitgate("accept", "0001", "--reason", "x", "-k", "decode*")
    assert speed.exit_code == 0
    assert "accepted.json, no scores: commit it" in speed.output
    assert not (tmp_path / "accepted.parquet").exists()
    scores.write_bytes(kept)
    done = bitgate("accept", "0001", "--reason", "x")
    assert done.exit_code == 0
    assert "accepted.json, scores beside it: commit both" in done.output
    assert (tmp_path / "accepted.parquet").exists()


def test_accepting_nonsense(runs, bitgate, tmp_path):
    runs.save(runs.speed(2.0), bitgate={"failed": {}, "unfinished": 3})
    for arguments, words in (
        (("0009", "--reason", "x"), "0009: no such file"),
        (("0001", "--reason", " "), "take a reason in words"),
        (("accepted", "--reason", "x"), "name the run that is to be accepted"),
        (("0001", "--reason", "x"), "is not whole, 3 tests did not finish"),
        (("0001", "--reason", "x", "-k", "*w4*"), "has no such case; it has decode[a]"),
    ):
        done = bitgate("accept", *arguments)
        assert done.exit_code == 4
        assert words in done.output
    assert bitgate("accept", "0001").exit_code == 2  # click's own: --reason is missing
    (tmp_path / "accepted.json").write_text("{")
    done = bitgate("accept", "0001", "--reason", "x", "-k", "a")
    assert done.exit_code == 4
    assert "accepted.json is no whole JSON file" in done.output


def test_what_is_accepted_although_it_failed_begins_a_new_history(runs, bitgate, tmp_path):
    """Or `--against latest` would stay red: what is red never becomes latest."""
    for value in (2.0, 2.05, 1.95, 2.02, 1.98, 2.0):
        runs.save(runs.quality(NLL), runs.speed(value))
    slower, worse = (
        runs.speed(1.0, outcome="fail"),
        runs.quality(NLL + 5, base=NLL - 20, outcome="fail"),
    )
    path = runs.save(worse, slower)
    run = read_run(path)
    sides = {case: run.side(record) for case, (record,) in run.records.items()}

    def red():
        latest = Store([tmp_path / "runs"], tmp_path / "accepted.json").reference("latest")
        (found,) = against(sides, [latest], DEFAULTS)
        return {change.metric: change for change in regressions(found.changes)}, found

    assert {"speedup", "perplexity"} <= red()[0].keys()
    done = bitgate("accept", "0007", "--reason", "x", "--even-failed", "the kernel was wrong")
    assert done.exit_code == 0, done.output
    now, found = red()
    assert now == {}
    told = {change.metric: change for change in found.changes}
    assert told["perplexity"].verdict == "unchanged"
    assert told["perplexity"].run == "0007"
    assert told["speedup"].verdict == "no history yet"
    assert "1 earlier run" in told["speedup"].why
