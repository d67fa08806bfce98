"""Drift: the first run and commit of every change, and nothing where nothing changed."""

import json
import math
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner

from bitgate.cli import main
from bitgate.history.drift import ALPHA, drift
from bitgate.history.reading import read

QUANTIZED, SCORED = "quantize[tiny-hqq-w4g64]", "perplexity[tiny-hqq-w4g64-text]"
DECODED, OTHER = "decode[tiny-hqq-w4g64-b1]", "decode[tiny-hqq-w8g64-b1]"


@pytest.fixture
def history(save_run, tmp_path):
    """Runs with one metric of one case; a value each, or (value, half-width)."""

    def make(metric, values, case=SCORED, **changes):
        for number, value in enumerate(values):
            save_run(tmp_path, number, {case: {metric: value}}, **changes)
        return read([tmp_path])

    return make


def speeds(*levels, spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    means = [value for value, count in levels for _ in range(count)]
    return [(float(x), 0.1) for x in means * np.exp(spread * rng.standard_normal(len(means)))]


def only(found):
    (change,) = found.changes
    return change


# --- exact ---------------------------------------------------------------------------------


def test_a_byte_more_is_a_change(history):
    change = only(drift(history("size_mib", [100.0, 100.0, 100.0 + 2**-20], QUANTIZED)))
    assert (change.way, change.direction, change.at, change.ago) == ("exact", "worse", 2, 1)
    assert (change.before, change.after, change.p) == (100.0, 100.0 + 2**-20, 0.0)
    assert change.first.of.commit == f"{2:040x}"
    assert change.last.of.commit == f"{1:040x}"


def test_every_level_of_an_exact_metric_is_a_change(history):
    found = drift(history("packed_layers", [7, 7, 6, 7, 7]))
    assert [(c.at, c.direction) for c in found.changes] == [(2, "worse"), (3, "better")]


def test_from_nothing_there_is_no_relative_change(history):
    change = only(drift(history("reload_difference", [0.0, 0.0, 1e-6], QUANTIZED)))
    assert math.isnan(change.relative)
    assert change.direction == "worse"


def test_a_base_is_neither_better_nor_worse(history):
    assert only(drift(history("base_size_mib", [1, 2], QUANTIZED))).direction == "neither"


# --- repeating -----------------------------------------------------------------------------


def test_scores_that_repeat_need_one_run(history):
    change = only(drift(history("perplexity_ratio", [(1.2, 0.05)] * 3 + [(1.21, 0.05)])))
    assert (change.way, change.at, change.direction) == ("repeating", 3, "worse")


def test_other_rounding_is_no_news_and_does_not_creep(history):
    values = [(1.2 * 1.0004**i, 0.05) for i in range(6) for _ in range(3)]
    found = drift(history("perplexity_ratio", values))
    assert [change.at for change in found.changes] == [9]  # 1.0004**3 is past 0.1 %


def test_scores_of_more_windows_change_only_beyond_both_intervals(history):
    within = [(1.2, 0.05, 32)] * 3 + [(1.23, 0.04, 48)] * 3
    assert drift(history("perplexity_ratio", within)).changes == []


def test_scores_of_more_windows_do_change(history):
    beyond = [(1.2, 0.05, 32)] * 3 + [(1.4, 0.04, 48)] * 3
    assert only(drift(history("perplexity_ratio", beyond))).at == 3


# --- varying -------------------------------------------------------------------------------


def test_a_slowdown_is_found_with_its_first_run(history):
    change = only(drift(history("speedup", speeds((2.0, 14), (1.6, 6)), DECODED)))
    assert (change.way, change.at, change.direction) == ("varying", 14, "worse")
    assert change.first.of.run.number == 14
    assert (change.start, change.end, change.ago) == (0, 20, 6)
    assert change.before == pytest.approx(2.0, rel=0.05)
    assert change.relative == pytest.approx(-0.2, abs=0.05)
    assert 0 < change.p < ALPHA


def test_a_quicker_one_is_better(history):
    found = drift(history("speedup", speeds((2.0, 14), (2.5, 6)), DECODED))
    assert only(found).direction == "better"


def test_noise_alone_is_no_change(history):
    assert drift(history("speedup", speeds((2.0, 30)), DECODED)).changes == []


def test_scores_that_vary_between_machines_are_tested(history):
    values = [(1.2 + 1e-4 * (i % 3 == 0) + 1e-5 * i, 0.05) for i in range(12)]
    assert drift(history("perplexity_ratio", values)).changes == []


def test_a_change_too_small_to_matter_is_none_however_sure(history):
    values = speeds((2.0, 20), (2.001, 20), spread=1e-6)
    assert drift(history("speedup", values, DECODED)).changes == []


def test_values_that_are_not_positive_are_compared_as_they_are(history):
    rng = np.random.default_rng(0)
    values = [(float(x), 0.1) for x in np.repeat([-0.5, 0.5], 8) + 0.1 * rng.standard_normal(16)]
    change = only(drift(history("speedup", values, DECODED)))
    assert change.at == 8
    assert change.before == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize(
    ("metric", "values"),
    [("speedup", speeds((2.0, 5))), ("packed_layers", [7]), ("perplexity_ratio", [(1.2, 0.1)])],
)
def test_too_short_to_tell_is_said(history, metric, values):
    found = drift(history(metric, values, DECODED if metric == "speedup" else SCORED))
    assert (found.changes, found.judged, len(found.short)) == ([], 0, 1)


def test_not_a_number_is_left_out_and_counted(history):
    values = speeds((2.0, 8), (1.4, 8))
    values[3] = values[12] = (math.nan, math.nan)
    found = drift(history("speedup", values, DECODED))
    assert found.not_finite == 2
    assert only(found).first.of.run.number == 8


def test_what_came_with_the_change(save_run, tmp_path):
    save_run(tmp_path, 0, {SCORED: {"packed_layers": 7}})
    versions = {"torch": "3", "hqq": "1"}
    save_run(tmp_path, 1, {SCORED: {"packed_layers": 6}}, versions=versions, host="there", cpu="b")
    change = only(drift(read([tmp_path])))
    assert change.beside == [
        "torch 2 -> 3",
        "hqq none -> 1",
        "machine here (2 x a) -> there (2 x b)",
    ]


def test_absolute_times_of_machines_are_not_compared(save_run, tmp_path):
    for number in range(20):
        host, value = ("slow", 10.0) if number < 10 else ("fast", 90.0 + number)
        save_run(tmp_path, number, {DECODED: {"tokens_per_second": (value, 1.0)}}, host=host)
    assert drift(read([tmp_path])).changes == []


# --- many series ---------------------------------------------------------------------------


def shuffled_history(save_run, folder, seed, runs=16, changed=0.0):
    rng = np.random.default_rng(seed)
    for number in range(runs):
        level = 1 + changed * (number >= runs - 5)
        save_run(
            folder,
            number,
            {
                case: {"speedup": (2 * level * float(np.exp(0.05 * rng.standard_normal())), 0.1)}
                for case in (DECODED, OTHER)
            },
        )
    return read([folder])


def test_unchanged_histories_raise_few_alarms(save_run, tmp_path):
    alarms = sum(
        bool(drift(shuffled_history(save_run, tmp_path / str(seed), seed)).changes)
        for seed in range(40)
    )
    assert alarms <= 4  # 2 % are promised; so many or more come by chance once in 600 times


def test_a_change_in_all_series_is_found_in_all(save_run, tmp_path):
    found = drift(shuffled_history(save_run, tmp_path, 0, changed=-0.2))
    assert {change.first.of.case for change in found.changes} == {DECODED, OTHER}


# --- the command ---------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(main, ["drift", *map(str, arguments)])


@pytest.fixture
def regressed(save_run, tmp_path):
    """Twelve runs; the last two have scores that are worse, and one file is broken."""
    values = speeds((2.0, 12))
    for number in range(12):
        worse = number >= 10
        save_run(
            tmp_path / "runs",
            number,
            {
                SCORED: {"perplexity_ratio": (1.3 if worse else 1.2, 0.05), "packed_layers": 7},
                DECODED: {"speedup": values[number]},
            },
            versions={"torch": "3" if worse else "2"},
        )
    (tmp_path / "runs" / "0012_x.json").write_text("{")
    return tmp_path / "runs"


def test_the_terminal_names_run_commit_and_what_came_with_it(regressed):
    done = invoke("--history", regressed)
    assert done.exit_code == 0
    for words in (
        "since run 0010, 2026-01-01 10:00 UTC",
        "with it came torch 2 -> 3",
        SCORED,
        "1.3",
        "+8.3%",
        "repeats",
        "│██",
        "1 change, 1 for the worse, in 3 series of 12 runs",
        "left out: ",
    ):
        assert words in done.output, words
    assert max(map(len, done.output.splitlines()[:4])) <= 160


def test_markdown_is_a_table(regressed):
    lines = invoke("--history", regressed, "--format", "markdown").output.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3
    assert len({row.count("|") for row in rows}) == 1


def test_json_has_all_digits(regressed):
    done = invoke("--history", regressed, "--format", "json")
    found = json.loads(done.output)
    (change,) = found["changes"]
    assert change["case"] == SCORED
    assert change["since"]["commit"] == f"{10:040x}"
    assert change["until"]["commit"] == f"{9:040x}"
    assert (change["runs_before"], change["runs_after"], change["runs_ago"]) == (10, 2, 2)
    assert change["relative"] == 1.3 / 1.2 - 1
    assert (found["runs"], found["judged"], len(found["skipped"])) == (12, 3, 1)


def test_json_of_what_has_no_relative_change(save_run, tmp_path):
    for number, value in enumerate([0.0, 0.0, 1.0]):
        save_run(tmp_path, number, {QUANTIZED: {"reload_difference": value}})
    done = invoke("--history", tmp_path, "--format", "json")
    assert json.loads(done.output)["changes"][0]["relative"] is None
    assert "new" in invoke("--history", tmp_path).output


def test_fail_looks_at_the_last_runs(regressed):
    assert invoke("--history", regressed, "--fail", "--last", 1).exit_code == 0
    done = invoke("--history", regressed, "--fail", "--last", 2)
    assert done.exit_code == 1
    assert f"FAIL: {SCORED}: perplexity_ratio became worse 2 runs ago" in done.output


def test_an_improvement_does_not_fail(save_run, tmp_path):
    for number, value in enumerate([6, 6, 7]):
        save_run(tmp_path, number, {SCORED: {"packed_layers": value}})
    assert invoke("--history", tmp_path, "--fail").exit_code == 0


def test_absolute_times_fail_only_if_they_are_named(save_run, tmp_path):
    for number, (value, half) in enumerate(speeds((30.0, 12), (10.0, 4))):
        save_run(tmp_path, number, {DECODED: {"tokens_per_second": (value, half)}})
    done = invoke("--history", tmp_path, "--fail")
    assert done.exit_code == 0
    assert "1 of the changes is of an absolute time" in done.output
    named = ("--metric", "tokens_per_second")
    assert invoke("--history", tmp_path, "--fail", *named).exit_code == 1


def test_fail_that_has_judged_nothing_says_so(save_run, tmp_path):
    save_run(tmp_path, 0, {SCORED: {"packed_layers": 7}})
    done = invoke("--history", tmp_path, "--fail")
    assert done.exit_code == 0
    assert "judged nothing" in done.output
    assert "1 series are too short" in done.output or "1 series is too short" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metric", "speedupp"), "did you mean 'speedup'"),
        (("-k", "nothing-like-it"), "no case fits"),
        (("--since", "v99"), "git knows no such revision"),
    ],
)
def test_what_is_not_there(regressed, arguments, words):
    done = invoke("--history", regressed, *arguments)
    assert done.exit_code == 4
    assert words in done.output


def test_no_history(tmp_path):
    for arguments in (("--history", tmp_path), ("--history", tmp_path / "none", "--fail")):
        done = invoke(*arguments)
        assert done.exit_code == 4
        assert "no saved runs in" in done.output


def test_only_some_cases_and_metrics(regressed):
    done = invoke("--history", regressed, "-k", "*b1", "--format", "json")
    assert json.loads(done.output)["judged"] == 1
    done = invoke("--history", regressed, "--metric", "perplexity_ratio", "--format", "json")
    assert json.loads(done.output)["judged"] == 1


# --- since ---------------------------------------------------------------------------------


def changes_since(folder, revision):
    done = invoke("--history", folder, "--since", revision, "--format", "json")
    assert done.exit_code == 0, done.output
    return len(json.loads(done.output)["changes"])


def test_since_a_commit_that_has_runs(regressed):
    assert changes_since(regressed, f"{10:040x}") == 1
    assert changes_since(regressed, f"{11:040x}") == 0


def test_since_a_revision_that_only_git_knows(save_run, tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for tag, hour in (("early", 1), ("late", 9)):
        date = f"2026-01-01T{hour:02d}:30:00+00:00"
        monkeypatch.setenv("GIT_COMMITTER_DATE", date)
        git("commit", "--allow-empty", "-m", tag, "--date", date)
        git("tag", tag)
    for number in range(6):
        save_run(tmp_path / "runs", number, {SCORED: {"packed_layers": 7 - (number > 2)}})
    monkeypatch.chdir(tmp_path)
    assert changes_since("runs", "early") == 1
    assert changes_since("runs", "late") == 0
