"""Proposed bounds: what was measured and 3 half-widths; the diff applies, loads and passes."""

import math
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgate import kernels
from bitgate.catalog import load as load_catalog
from bitgate.cli import main
from bitgate.gates.bounds import NoBoundError, Observation, proposed
from bitgate.gates.propose import NewGate, Proposal, propose
from bitgate.gates.rewrite import diff, needs, rewrite
from bitgate.gates.rules import matching, resolve
from bitgate.gates.thresholds import load
from bitgate.gates.verdict import judge
from bitgate.history.reading import read
from bitgate.metric import Interval, Metric
from bitgate.quantize import recipe_types

QUANTIZED, SCORED = "quantize[tiny-hqq-w4g64]", "perplexity[tiny-hqq-w4g64-text]"
DECODED, SCORED8 = "decode[tiny-hqq-w4g64-b1]", "perplexity[tiny-hqq-w8g64-text]"

MODELS = (
    '[model.tiny]\nfamily = "llama"\nsource = { kind = "shapes" }\nformat = "shapes"\nconfig = {}\n'
)
DATASETS = (
    '[dataset.text]\nsource = { kind = "local", path = "t" }\nformat = "plain"\ntokens = 1000\n'
)
RECIPES = '[[recipe]]\nmethod = "hqq"\nbits = [4, 8]\ngroup_size = 64\n'
MATRIX = """
[decode.b1]

[[matrix]]
cadence = "commit"
models = ["tiny"]
recipes = ["hqq-w4g64", "hqq-w8g64"]
quantize = true
perplexity = ["text"]
decode = ["b1"]
"""
GATES = """\
# what is good enough

[[gate]]
name = "4 bits"
match = { bits = 4, dataset = "text" }   # beside match
require.perplexity_ratio = { max = 1.9 } # a guess
require.kl_divergence = { max = 0.2 }    # another

[[gate]]
name = "both"
# a user's need: half of it
require.top1_agreement = { min = 0.5 }
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with a catalog, gates and a folder for runs."""
    folder = tmp_path / "project"
    (folder / "fixtures").mkdir(parents=True)
    for name, text in (
        ("models", MODELS),
        ("datasets", DATASETS),
        ("recipes", RECIPES),
        ("matrix", MATRIX),
    ):
        (folder / "fixtures" / f"{name}.toml").write_text(text)
    (folder / "thresholds.toml").write_text(GATES)
    monkeypatch.chdir(folder)
    return folder


def invoke(*arguments):
    return CliRunner().invoke(main, ["propose", *map(str, arguments)])


def observation(cases, value, half=0.0, *, name="perplexity_ratio", case=SCORED, run="1", **more):
    interval = Interval(value - half, value + half, 0.98, "t", "window", 32) if half else None
    return Observation(cases[case], _execution(), Metric(name, value, interval, **more), run)


def _execution():
    from bitgate.catalog import Execution

    return Execution("cpu", "float32", 1, "dequantize")


# --- bounds --------------------------------------------------------------------------------


def test_measured_plus_three_half_widths(cases):
    bound, reason = proposed([observation(cases, 1.25, 0.01)], "max", 3)
    assert bound == 1.28
    assert reason == "1.25 measured (1.24 to 1.26), 1 run; bound = measured + 3 half-widths"


def test_a_minimum_is_below(cases):
    bound, reason = proposed([observation(cases, 2.0, 0.25, name="speedup")], "min", 3)
    assert bound == 1.25
    assert "measured - 3 half-widths" in reason


def test_the_worst_of_all_runs_and_cases_decides(cases):
    found = [
        observation(cases, 1.25, 0.01),
        observation(cases, 1.24, 0.05, run="2"),
        observation(cases, 1.3, 0.01, run="2", case=SCORED8),
    ]
    bound, reason = proposed(found, "max", 3)
    assert bound == 1.39
    assert reason.startswith("worst of 2 cases, tiny-hqq-w4g64-text: 1.24 measured")
    assert "2 runs" in reason


def test_an_exact_value_is_its_own_bound(cases):
    found = [observation(cases, 0.0, name="reload_difference", case=QUANTIZED)]
    assert proposed(found, "max", 3)[0] == 0.0
    found = [observation(cases, 5e6, 1e-9)]  # narrower than the value's own rounding
    assert proposed(found, "max", 3)[0] >= 5e6


@pytest.mark.parametrize(("value", "bound"), [(100.0, 0.0), (100.0712, 0.00072), (99.9, 0.0011)])
def test_within_is_the_distance_to_what_was_expected(cases, value, bound):
    found = [observation(cases, value, name="size_mib", case=QUANTIZED, expected=100.0)]
    assert proposed(found, "within", 3)[0] == pytest.approx(bound, rel=0.1)
    assert proposed(found, "within", 3)[0] >= abs(value / 100 - 1)


@pytest.mark.parametrize(
    ("one", "key", "why"),
    [
        ({"value": math.nan, "half": 1.0}, "max", "not finite"),
        ({"value": 2.0, "half": 1.0, "name": "speedup"}, "min", "not above 0"),
        ({"value": 1.0, "name": "size_mib", "case": QUANTIZED}, "within", "nothing was expected"),
    ],
)
def test_where_there_is_no_bound(cases, one, key, why):
    with pytest.raises(NoBoundError, match=why):
        proposed([observation(cases, one.pop("value"), one.pop("half", 0.0), **one)], key, 3)


@settings(deadline=None)
@given(
    value=st.floats(1e-6, 1e6),
    width=st.floats(1e-6, 0.2),
    skew=st.floats(0.05, 0.95),
    margin=st.floats(0, 5),
)
def test_a_bound_is_never_within_the_interval_and_close_to_what_it_says(
    cases, value, width, skew, margin
):
    low, high = value * (1 - width * skew), value * (1 + width * (1 - skew))
    metric = Metric("perplexity_ratio", value, Interval(low, high, 0.98, "t", "window", 32))
    one = Observation(cases[SCORED], _execution(), metric, "1")
    bound, _ = proposed([one], "max", margin)
    least = max(high, value + margin * (high - low) / 2)
    assert high <= bound
    assert least - bound <= 1e-8 * (least - value)
    assert bound - least <= 0.1001 * (least - value)


# --- which rules ---------------------------------------------------------------------------


def proposals_for(project, observations, **how):
    catalog = load_catalog(project / "fixtures", recipe_types())
    gates = load(project / "thresholds.toml")
    return propose(gates, catalog.cases(), observations, kernels.NAMES, **how)


def test_a_rule_is_tightened(project, cases):
    found = proposals_for(project, [observation(cases, 1.25, 0.01)])
    (change,) = found.changes
    assert (change.gate, change.metric, change.key) == ("4 bits", "perplexity_ratio", "max")
    assert (change.was, change.bound, change.looser) == (1.9, 1.28, False)
    assert found.gates == []


def test_a_rule_that_would_be_looser_is_marked(project, cases):
    (change,) = proposals_for(project, [observation(cases, 1.85, 0.03)]).changes
    assert change.looser


def test_a_rule_for_cases_without_a_run_is_not_tightened(project, cases):
    seen = [observation(cases, 0.7, 0.01, name="top1_agreement")]
    found = proposals_for(project, seen)
    assert found.changes == []
    assert "it is also for perplexity[tiny-hqq-w8g64-text]" in found.notes[0]
    seen.append(observation(cases, 0.9, 0.01, name="top1_agreement", case=SCORED8))
    assert proposals_for(project, seen).changes[0].bound == 0.67


def test_a_rule_for_cases_without_a_run_may_be_loosened(project, cases):
    seen = [observation(cases, 0.4, 0.01, name="top1_agreement")]
    assert proposals_for(project, seen).changes[0].looser


def test_a_need_is_kept(project, cases):
    seen = [observation(cases, 0.7, 0.01, name="top1_agreement", case=c) for c in (SCORED, SCORED8)]
    found = proposals_for(project, seen, needs=needs(GATES))
    assert found.changes == []
    assert "a need" in found.notes[0]


def test_an_expected_failure_is_kept(project, cases):
    (project / "thresholds.toml").write_text(
        '[[gate]]\nname = "g"\nrequire.perplexity_ratio = '
        '{ max = 1.1, expect = "fail", reason = "known" }\n'
    )
    found = proposals_for(project, [observation(cases, 1.25, 0.01)])
    assert (found.changes, found.gates) == ([], [])
    assert "expected to fail" in found.notes[0]


def test_a_bound_that_says_the_same_is_not_touched(project, cases):
    assert proposals_for(project, [observation(cases, 1.6, 0.1)]).changes == []


def test_metrics_without_a_rule_get_a_gate(project, cases):
    speed = observation(cases, 2.0, 0.1, name="speedup", case=DECODED)
    (gate,) = proposals_for(project, [speed]).gates
    assert gate.name == "tiny-hqq-w4g64-b1 on cpu"
    assert gate.match == {
        "model": "tiny", "recipe": "hqq-w4g64", "phase": "decode", "batch": 1,
        "device": "cpu", "compiled": False,
    }  # fmt: skip
    (bound,) = gate.bounds
    assert (bound.metric, bound.key, bound.bound) == ("speedup", "min", 1.7)


def test_a_gate_is_not_added_where_it_would_be_for_more_than_was_measured(project, cases):
    matrix = project / "fixtures" / "matrix.toml"
    matrix.write_text(
        MATRIX.replace("[[matrix]]", '[decode.b1-long]\nprompt = 99\n\n[[matrix]]')
        .replace('decode = ["b1"]', 'decode = ["b1", "b1-long"]')
    )  # fmt: skip
    speed = observation(cases, 2.0, 0.1, name="speedup", case=DECODED)
    found = proposals_for(project, [speed])
    assert found.gates == []
    assert "also be for decode[tiny-hqq-w4g64-b1-long]" in found.notes[0]


def test_a_gate_is_not_added_where_it_would_override_another(project, cases):
    (project / "thresholds.toml").write_text(
        '[[gate]]\nname = "g"\nmatch = { kernel = "cpu-int4" }\nrequire.speedup = { min = 2 }\n'
    )
    speed = observation(cases, 2.0, 0.1, name="speedup", case=DECODED)  # served by dequantize
    found = proposals_for(project, [speed])
    assert found.gates == []
    assert "would override" in found.notes[0]


def test_what_is_neither_better_nor_worse_has_no_bound(project, cases):
    base = observation(cases, 30.0, 1.0, name="base_perplexity")
    assert proposals_for(project, [base]).gates == []


# --- the file ------------------------------------------------------------------------------


CHANGE = Proposal("4 bits", "perplexity_ratio", "max", 1.28, "1.25 measured", 1.9)


def test_only_the_bound_and_its_comment_change():
    new = rewrite(GATES, [CHANGE], [])
    changed = [(a, b) for a, b in zip(GATES.splitlines(), new.splitlines(), strict=True) if a != b]
    assert changed == [
        (
            "require.perplexity_ratio = { max = 1.9 } # a guess",
            "require.perplexity_ratio = { max = 1.28 } # 1.25 measured",
        )
    ]


def test_a_looser_bound_says_so():
    looser = Proposal("4 bits", "perplexity_ratio", "max", 2.5, "2.2 measured", 1.9)
    assert "{ max = 2.5 } # LOOSER than max 1.9: 2.2 measured" in rewrite(GATES, [looser], [])


@pytest.mark.parametrize(
    "gate",
    [
        'require = { perplexity_ratio = { max = 1.9 }, kl_divergence = { max = 1 } }',
        "require.perplexity_ratio.max = 1.9",
        "[gate.require]\nperplexity_ratio = { max = 1.9 }",
        "[gate.require.perplexity_ratio]\nmax = 1.9 # old",
    ],
)  # fmt: skip
def test_however_the_file_is_written(tmp_path, gate):
    text = f'[[gate]]\nname = "4 bits"\n{gate}\n'
    new = rewrite(text, [CHANGE], [])
    assert new.count("1.25 measured") == 1
    assert "old" not in new
    (tmp_path / "new.toml").write_text(new)
    assert load(tmp_path / "new.toml").gates[0].require["perplexity_ratio"].max == 1.28


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "# end"])
def test_a_gate_is_added_at_the_end(tmp_path, end):
    gate = NewGate('a "b"', {"bits": 4, "compiled": False}, [CHANGE])
    (tmp_path / "new.toml").write_text(rewrite(GATES + end, [], [gate]))
    added = load(tmp_path / "new.toml").gates[-1]
    assert added.name == 'a "b"'
    assert added.match.given() == {"bits": (4,), "compiled": (False,)}
    assert added.require["perplexity_ratio"].max == 1.28


def test_which_bounds_are_needs():
    text = """
[[gate]]
name = "one" # users need it
require.a = { max = 1 }
require.b = { max = 1 }
# --- the next section: needs ---

[[gate]]
name = "two"
require.a = { max = 1 } # a need
require.b = { max = 1 } # needless to say
# Need:
require.c = { max = 1 }

[[gate]]
name = "three"
[gate.require.a]
max = 1
[gate.require.b]
max = 1
"""
    assert needs(text) == {("one", "a"), ("one", "b"), ("two", "a"), ("two", "c")}


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("program", ["git", "patch"])
def test_the_diff_applies(tmp_path, end, program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    old = GATES.rstrip("\n") + end
    new = rewrite(old, [CHANGE], [NewGate("new", {"bits": 8}, [CHANGE])])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "thresholds.toml").write_text(old)
    command = {"git": ["git", "apply"], "patch": ["patch", "-p1"]}[program]
    text = diff("sub/thresholds.toml", old, new)
    subprocess.run(command, input=text, text=True, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "sub" / "thresholds.toml").read_text() == new


# --- the command ---------------------------------------------------------------------------


@pytest.fixture
def measured(project, save_run):
    """Three runs of both cells, all metrics."""
    for number in range(3):
        metrics = {
            case: {
                "perplexity_ratio": (1.2 + 0.01 * number, 0.02),
                "kl_divergence": (0.21, 0.01),
                "top1_agreement": (0.8, 0.02),
                "packed_layers": 7,
            }
            for case in (SCORED, SCORED8)
        }
        metrics[DECODED] = {"speedup": (2.0, 0.1), "tokens_per_second": (30.0, 1.0)}
        save_run(project / ".benchmarks", number, metrics)
    return project


def verdicts(project):
    """Of every recorded metric that the file of gates has a rule for."""
    catalog = load_catalog(project / "fixtures", recipe_types())
    cases = {case.key: case for case in catalog.cases()}
    gates = load(project / "thresholds.toml")
    found = []
    for point in read([project / ".benchmarks"]).points:
        rules = resolve(matching(gates, cases[point.of.case], point.of.execution))
        if point.metric.name in rules:
            found.append(judge(point.metric, rules[point.metric.name]))
    return found


def test_what_is_written_passes_for_the_runs_it_was_made_from(measured):
    assert {v.outcome for v in verdicts(measured)} == {"pass", "inconclusive"}  # a guess
    done = invoke("--write", "--allow-looser")
    assert done.exit_code == 0, done.output
    found = verdicts(measured)
    assert {verdict.outcome for verdict in found} == {"pass"}
    assert {v.metric for v in found} == {
        *("perplexity_ratio", "kl_divergence", "top1_agreement", "packed_layers", "speedup")
    }
    again = invoke()
    assert again.exit_code == 0
    assert "nothing to propose" in again.output


def test_the_printed_diff_applies_and_gives_what_write_writes(measured):
    done = invoke()
    assert done.exit_code == 0
    assert (measured / "thresholds.toml").read_text() == GATES
    subprocess.run(["git", "apply"], input=done.stdout, text=True, cwd=measured, check=True)
    applied = (measured / "thresholds.toml").read_text()
    assert applied != GATES
    (measured / "thresholds.toml").write_text(GATES)
    assert invoke("--write").stdout == done.stdout
    assert (measured / "thresholds.toml").read_text() == applied


def test_nothing_is_loosened_silently(measured):
    done = invoke()
    assert "LOOSER" not in done.stdout
    assert "require.kl_divergence = { max = 0.2 }    # another" in done.stdout
    assert '"4 bits" kl_divergence: max 0.2 is kept, 0.24 would be looser' in done.stderr
    assert "LOOSER than max 0.2" in invoke("--allow-looser").stdout


def test_needs_and_absolute_times_are_left_alone(measured):
    done = invoke()
    assert "top1_agreement" not in done.stdout.replace(
        " require.top1_agreement = { min = 0.5 }", ""
    )
    assert "tokens_per_second" not in done.stdout
    assert "tokens_per_second = { min = 27 }" in invoke("--metric", "tokens_per_second").stdout


def test_some_cases_some_metrics_some_runs_and_another_margin(measured):
    done = invoke("--metric", "perplexity_ratio", "-k", "*w4g64*")
    assert "+require.perplexity_ratio = { max = 1.28 } # 1.22 measured" in done.stdout
    assert "[[gate]]\n+" not in done.stdout
    first = next(measured.glob(".benchmarks/0000_*.json"))
    done = invoke("--metric", "perplexity_ratio", "-k", "*w4g64*", "--from", first, "--margin", 2)
    assert (
        "{ max = 1.24 } # 1.2 measured (1.18 to 1.22), 1 run; bound = measured + 2" in done.stdout
    )


def test_without_a_file_a_new_one_is_proposed(measured):
    (measured / "thresholds.toml").unlink()
    done = invoke("--write")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("--- /dev/null\n+++ b/thresholds.toml\n")
    assert {verdict.outcome for verdict in verdicts(measured)} == {"pass"}


def test_cases_that_the_matrix_has_no_more_are_named(measured):
    matrix = measured / "fixtures" / "matrix.toml"
    matrix.write_text(MATRIX.replace('decode = ["b1"]\n', ""))
    assert f"{DECODED} is recorded, but no case of the matrix any more" in invoke().stderr


def test_an_empty_history_says_how_to_make_one(project):
    done = invoke()
    assert done.exit_code == 4
    assert "pytest bench --benchmark-autosave" in done.output


def test_a_wrong_file_of_gates(measured):
    (measured / "thresholds.toml").write_text(
        '[[gate]]\nname = "g"\nrequire.speedupp = { min = 1 }\n'
    )
    done = invoke()
    assert done.exit_code == 4
    assert "did you mean 'speedup'" in done.output
