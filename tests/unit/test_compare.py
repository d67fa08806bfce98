"""Two measurements of a case: what is a change, what is none, and what cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bitgate.gates.tolerances import DEFAULTS
from bitgate.history.against import against, side_by_side
from bitgate.history.change import judged
from bitgate.history.compare import combined, compare
from bitgate.history.past import Past, past, pasts
from bitgate.history.saved import read_run
from bitgate.history.store import Reference, Store

RNG = np.random.default_rng(0)
NLL = RNG.normal(320, 60, 32)
NOISE = RNG.normal(0, 1, 32)


@pytest.fixture
def side(runs):
    """A made-up case as a run has measured it."""

    def make(case, **options):
        run = read_run(runs.save(case, **options))
        ((record,),) = run.records.values()
        return run.side(record)

    return make


def changes(then, now, earlier=None, **options):
    before = {"speedup": earlier or Past()}
    found = judged(compare(then, now, DEFAULTS, before, **options))
    return {change.metric: change for change in found}


# --- quality -------------------------------------------------------------------------------


def test_the_same_scores_are_unchanged(runs, side):
    found = changes(side(runs.quality(NLL)), side(runs.quality(NLL)))
    assert {change.verdict for change in found.values()} == {"unchanged"}
    assert all(change.p is None for change in found.values())  # and cost others nothing


def test_rounding_on_another_machine_is_no_change(runs, side):
    then = side(runs.quality(NLL))
    now = side(
        runs.quality(NLL * (1 + 1e-6 * NOISE), base=(NLL - 20) * (1 + 1e-5 * NOISE), hardware="B")
    )
    found = changes(then, now)
    assert {change.verdict for change in found.values()} == {"unchanged"}
    assert found["perplexity"].p == 1


@pytest.mark.parametrize(("shift", "verdict"), [(1.0, "regression"), (-1.0, "better")])
def test_a_change_that_all_windows_share(runs, side, shift, verdict):
    """1 % of the perplexity, far less than windows differ from each other."""
    now = NLL + shift + 0.1 * NOISE
    found = changes(side(runs.quality(NLL, base=NLL - 20)), side(runs.quality(now, base=NLL - 20)))
    change = found["perplexity"]
    assert change.verdict == verdict
    assert change.change == pytest.approx(math.exp((now - NLL).mean() / 100) - 1, rel=1e-12)
    interval = stats.ttest_1samp((now - NLL) / 100, 0).confidence_interval(0.98)
    assert change.interval == pytest.approx(
        (math.expm1(interval.low), math.expm1(interval.high)), rel=1e-9
    )
    assert found["perplexity_ratio"].verdict == verdict
    assert found["kl_divergence"].verdict == "unchanged"


def test_a_shift_without_any_noise_is_a_change(runs, side):
    found = changes(
        side(runs.quality(NLL, base=NLL - 20)), side(runs.quality(NLL + 1, base=NLL - 20))
    )
    assert found["perplexity"].verdict == "regression"


def test_worse_within_the_tolerance_is_unchanged(runs, side):
    found = changes(side(runs.quality(NLL)), side(runs.quality(NLL + 0.05 + 0.001 * NOISE)))
    assert found["perplexity"].verdict == "unchanged"
    assert found["perplexity"].change == pytest.approx(0.0005, rel=0.05)


def test_what_cannot_be_told_is_inconclusive(runs, side):
    found = changes(
        side(runs.quality(NLL, base=NLL - 20)), side(runs.quality(NLL + 3 * NOISE, base=NLL - 20))
    )
    assert found["perplexity"].verdict == "inconclusive"


def test_divergence_and_agreement_have_tolerances_in_their_unit(runs, side):
    kl = 5 + NOISE
    same = np.clip(80 + NOISE, 0, 100)
    found = changes(
        side(runs.quality(NLL, kl=kl, same=same)),
        side(runs.quality(NLL, kl=kl + 0.04, same=same - 0.4)),
    )
    assert found["kl_divergence"].verdict == "unchanged"
    assert found["top1_agreement"].verdict == "unchanged"
    found = changes(
        side(runs.quality(NLL, kl=kl, same=same)),
        side(runs.quality(NLL, kl=kl + 0.06, same=same - 0.6)),
    )
    assert found["kl_divergence"].verdict == "regression"
    assert found["top1_agreement"].verdict == "regression"
    assert "worse than" in found["top1_agreement"].text


def test_only_windows_that_both_have_scored_are_paired(runs, side):
    longer = np.concatenate([NLL, NLL + 300])
    found = changes(side(runs.quality(NLL)), side(runs.quality(longer)))
    assert found["perplexity"].verdict == "unchanged"
    assert "32 paired windows" in found["perplexity"].why


NOT_COMPARABLE = {
    "no scores": ({"items": False}, {}, "per-item scores of 0001 are missing"),
    "few windows": ({}, {"windows": 15}, "15 windows were scored in both, 16 are needed"),
    "another text": ({}, {"base": NLL * 1.1}, "another text or base: the base's own scores differ"),
    "another window": (
        {},
        {"workload": {"kind": "perplexity", "name": "w", "window": 512}},
        "workload's window None then, 512 now",
    ),
    "another kernel": ({}, {"execution": {"kernel": "b"}}, "kernel cpu-int4 then, b now"),
    "another device": ({}, {"execution": {"device": "cuda:1"}}, "device cpu then, cuda now"),
}


@pytest.mark.parametrize("what", NOT_COMPARABLE)
def test_not_comparable(runs, side, what):
    options, changed, words = NOT_COMPARABLE[what]
    count, base = changed.get("windows", 32), changed.get("base", NLL - 20)
    rest = {key: changed[key] for key in changed.keys() - {"windows", "base"}}
    then = side(runs.quality(NLL, base=NLL - 20), **options)
    now = side(runs.quality(NLL[:count], base=base[:count], **rest))
    found = changes(then, now)
    assert {change.verdict for change in found.values()} == {"not comparable"}
    assert words in found["perplexity"].text


@pytest.mark.parametrize(
    ("base", "workload", "verdict"),
    [
        (NLL - 20, None, "recorded"),
        (NLL - 20 + 0.05 * NOISE, None, "recorded"),  # rounded otherwise
        (NLL - 20 + 0.3 + NOISE / 10, None, "regression"),  # of a revision that is nearly the same
        (NLL - 20 - 0.3 + NOISE / 10, None, "regression"),
        (NLL * 1.1, None, "regression"),  # such as a stale cache, or text that was cut
        (NLL * 1.1, {"kind": "perplexity", "name": "w", "window": 512}, "recorded"),
    ],
)
def test_another_base_under_the_same_name_is_red(runs, side, base, workload, verdict):
    """Nothing that is paired with it can be compared, which must not pass as undecided."""

    def measured(base, **rest):
        record, items = runs.quality(NLL, base=base, **rest)
        metrics = {**record["metrics"], "base_perplexity": BASE_PERPLEXITY}
        return side(({**record, "metrics": metrics}, items))

    now = measured(base, **({"workload": workload} if workload else {}))
    change = changes(measured(NLL - 20), now)["base_perplexity"]
    assert change.verdict == verdict
    if verdict == "regression":
        assert "base_perplexity is of another text or base: the base's own scores" in change.text
        assert change.text.endswith("accept this run, or measure once without --against")


def test_a_few_tokens_that_are_nearly_certain_are_no_other_base(runs, side):
    """Of a window of next to no score a rounding error is some per cent."""
    base = NLL - 20
    base[3] = 0.004
    moved = base.copy()
    moved[3] = 0.00412

    def measured(base):
        record, items = runs.quality(NLL, base=base)
        metrics = {**record["metrics"], "base_perplexity": BASE_PERPLEXITY}
        return side(({**record, "metrics": metrics}, items))

    found = changes(measured(base), measured(moved))
    assert found["base_perplexity"].verdict == "recorded"
    assert found["perplexity_ratio"].verdict == "unchanged"


BASE_PERPLEXITY = {"value": 30.0, "unit": "1", "better": "neither", "interval": "exact"}


def test_threads_and_hardware_do_not_matter_to_scores(runs, side):
    now = side(runs.quality(NLL, execution={"threads": 4}, hardware="another"))
    assert changes(side(runs.quality(NLL)), now)["perplexity"].verdict == "unchanged"


def test_what_is_no_number(runs, side):
    good, bad = runs.quality(NLL), runs.quality(NLL)
    bad[0]["metrics"]["perplexity"]["value"] = math.nan
    bad[1]["kl"] = np.where(np.arange(32) == 3, np.nan, bad[1]["kl"])
    found = changes(side(good), side(bad))
    assert found["perplexity"].verdict == "regression"
    assert found["perplexity"].text == "perplexity nan is not a finite number"
    assert found["kl_divergence"].text.endswith("a window's score is not a finite number")
    assert changes(side(bad), side(good))["perplexity"].verdict == "not comparable"
    assert "it was nan in" in changes(side(bad), side(good))["perplexity"].text


# --- what is exact -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "then", "now", "verdict"),
    [
        ("size_mib", 100, 100, "unchanged"),
        ("size_mib", 100, 100.05, "unchanged"),
        ("size_mib", 100, 100.2, "regression"),
        ("size_mib", 100, 90, "better"),
        ("memory_mib", 100, 100.0001, "regression"),
        ("packed_layers", 210, 209, "regression"),
        ("packed_layers", 209, 210, "better"),
        ("packed_layers", 210, 0, "regression"),
        ("packed_layers", 0, 210, "better"),
        ("reload_difference", 0, 1e-9, "regression"),
        ("reload_difference", 0, 0, "unchanged"),
        ("base_size_mib", 100, 200, "recorded"),
    ],
)
def test_exact(runs, side, metric, then, now, verdict):
    change = changes(side(runs.sizes(**{metric: then})), side(runs.sizes(**{metric: now})))[metric]
    assert change.verdict == verdict
    assert change.p is None
    assert metric in change.text


def test_a_metric_that_only_one_side_has(runs, side):
    found = changes(
        side(runs.sizes(size_mib=1, memory_mib=1)), side(runs.sizes(size_mib=1, packed_layers=1))
    )
    assert found["memory_mib"].text == "memory_mib missing: it was not measured"
    assert found["packed_layers"].text == "packed_layers missing: 0001 does not have it"


def test_a_metric_that_this_version_does_not_know_is_shown(runs, side):
    record, items = runs.sizes(size_mib=1)
    joules = {"value": 3.0, "unit": "J", "better": "lower", "interval": "exact"}
    record["metrics"]["joules"] = joules
    other = {**record, "metrics": {**record["metrics"], "joules": {**joules, "value": 6.0}}}
    change = changes(side((record, items)), side((other, items)))["joules"]
    assert change.verdict == "recorded"
    assert change.change == pytest.approx(1.0)


# --- speed ---------------------------------------------------------------------------------


def earlier(runs, values, **changes):
    """A history of these speeds, the newest last, as seen from one of now."""
    saved = [read_run(runs.save(runs.speed(value, **changes))) for value in values]
    (now,) = read_run(runs.save(runs.speed(1.0))).records["decode[a]"]
    return past(saved[::-1], now)


STEADY = [2.0, 2.05, 1.95, 2.02, 1.98, 2.0, 2.03, 1.97]


def test_a_prediction_from_eight_runs(runs, side):
    before = earlier(runs, STEADY)
    logs = np.log(STEADY)
    half = stats.t.isf(0.01, 7) * logs.std(ddof=1) * math.sqrt(1 + 1 / 8)
    then = side(runs.speed(2.0))
    for value, verdict in (
        (2.0, "unchanged"),
        (1.9, "unchanged"),
        (1.7, "regression"),
        (2.5, "better"),
    ):
        change = changes(then, side(runs.speed(value)), before, predict=True)["speedup"]
        assert change.verdict == verdict, value
        low, high = change.interval
        expected = math.log(value) - logs.mean()
        assert (math.log1p(low), math.log1p(high)) == pytest.approx(
            (expected - half, expected + half)
        )
    assert "expected from history" in change.text


def test_absolute_times_are_never_judged(runs, side):
    found = changes(side(runs.speed(2.0)), side(runs.speed(2.0)))
    assert found["latency_ms"].verdict == "recorded"


def test_only_the_last_eight_runs_count(runs):
    assert len(earlier(runs, [9.0] * 4 + STEADY).logs) == 8
    assert max(earlier(runs, [9.0] * 4 + STEADY).logs) < math.log(3)


@pytest.mark.parametrize(
    ("before", "value", "verdict"),
    [
        ([3.0] * 4 + [4.0] * 4, 4.0, "unchanged"),
        ([3.0] * 4 + [4.0] * 4, 3.0, "regression"),  # what was gained is lost
        ([3.0] * 5 + [4.0] * 3, 2.4, "regression"),
        ([4.0] * 4 + [3.0] * 4, 3.0, "unchanged"),  # known to be slower
        ([3.0] * 7 + [6.0], 3.0, "inconclusive"),  # one outlier: hardly anything would be seen
        ([3.0] * 7 + [1.5], 2.1, "inconclusive"),
    ],
)
def test_a_level_or_an_outlier_among_the_runs_is_not_noise(runs, side, before, value, verdict):
    noise = 1 + 0.01 * np.array([0.3, -1.2, 0.8, -0.1, 1.1, -0.6, 0.2, -0.9])
    then = side(runs.speed(before[-1]))
    past = earlier(runs, list(np.array(before) * noise))
    change = changes(then, side(runs.speed(value)), past, predict=True)["speedup"]
    assert change.verdict == verdict, change.text


def test_a_history_says_what_it_leaves_out_before_a_change(runs):
    found = earlier(runs, [3.01, 3.0, 2.99, 3.01, 3.0, 3.99, 4.01, 4.0])
    assert np.exp(found.logs) == pytest.approx([4.0, 4.01, 3.99])
    assert found.left_out == {"before the speed changed": 5}
    assert found.enough
    assert len(earlier(runs, STEADY).logs) == 8


def test_too_little_history_says_so(runs, side):
    then, now = side(runs.speed(2.0)), side(runs.speed(0.1))
    for count in (0, 1, 4):
        change = changes(then, now, earlier(runs, STEADY[:count]), predict=True)["speedup"]
        assert change.verdict == "no history yet"
        assert f"{count} earlier run" in change.text
        assert "5 are needed" in change.text


def test_history_of_other_hardware_and_of_nan_is_left_out(runs, side):
    other = earlier(runs, STEADY, hardware="another CPU")
    change = changes(side(runs.speed(2.0)), side(runs.speed(0.1)), other, predict=True)["speedup"]
    assert change.verdict == "no history yet"
    assert "8 left out: hardware another CPU then, CPU now" in change.text
    assert earlier(runs, STEADY, execution={"threads": 2}).left_out == {"threads 2 then, 1 now": 8}
    broken = earlier(runs, [*STEADY, math.nan, 0.0, math.inf])
    assert len(broken.logs) == 8
    assert broken.left_out == {"speedup nan": 1, "speedup 0.0": 1, "speedup inf": 1}


def test_two_runs_by_their_intervals(runs, side):
    """Each with 5 % between processes: sqrt(2) of that for the difference."""
    then = side(runs.speed(2.0))
    change = changes(then, side(runs.speed(1.9)))["speedup"]
    assert change.verdict == "unchanged"
    assert change.evidence.error == pytest.approx(0.05 * math.sqrt(2), rel=1e-3)
    assert "by both intervals: 0 earlier runs, 5 are needed" in change.why
    assert changes(then, side(runs.speed(1.5)))["speedup"].verdict == "regression"


def test_two_runs_by_the_spread_of_the_history(runs, side):
    before = earlier(runs, STEADY)
    change = changes(side(runs.speed(2.0)), side(runs.speed(1.7)), before)["speedup"]
    assert change.verdict == "regression"
    deviation = np.log(STEADY).std(ddof=1)
    assert change.evidence.error == pytest.approx(deviation * math.sqrt(2))
    assert change.change == pytest.approx(-0.15)


def processes_of(runs, logs, **changes):
    logs = np.asarray(logs)
    deviation = float(logs.std(ddof=1)) if len(logs) > 1 else None
    return runs.speed(
        math.exp(logs.mean()), processes=len(logs), deviation=deviation, spread=0.5, **changes
    )


def test_two_runs_by_their_processes(runs, side):
    """As the two-sample t-test; their intervals, made with what was assumed, are far wider."""
    rng = np.random.default_rng(0)
    then, now = rng.normal(0.7, 0.02, 5), rng.normal(0.6, 0.02, 3)
    sides = side(processes_of(runs, then)), side(processes_of(runs, now))
    change = changes(*sides)["speedup"]
    assert change.verdict == "regression"
    assert change.why == "Student t over 5 and 3 processes"
    theirs = stats.ttest_ind(now, then - change.allowed, alternative="less")
    assert change.p == pytest.approx(theirs.pvalue)
    few = changes(side(processes_of(runs, then[:2])), side(processes_of(runs, now)))["speedup"]
    assert few.why.startswith("by both intervals")


def test_a_prediction_from_the_processes_of_eight_runs(runs, side):
    rng = np.random.default_rng(3)
    logs = rng.normal(0.7, 0.02, (9, 5))
    saved = [read_run(runs.save(processes_of(runs, x))) for x in logs[:8]]
    now = side(processes_of(runs, logs[8]))
    found = changes(side(runs.speed(2.0)), now, past(saved[::-1], now.record), predict=True)
    change = found["speedup"]
    assert change.why == "prediction from 8 runs of 40 processes"
    assert change.evidence.freedom == 9 * 5 - 2
    assert change.evidence.change == pytest.approx(logs[8].mean() - logs[:8].mean())


def test_both_clocks_are_compared(runs, side):
    then, slow = side(runs.speed(2.0, cpu=3.0)), side(runs.speed(2.0, cpu=1.5))
    found = changes(then, slow)
    assert found["speedup"].verdict == "unchanged"
    assert found["cpu_speedup"].verdict == "regression"
    # it has a history of its own
    saved = [read_run(runs.save(runs.speed(2.0, cpu=3.0 * value))) for value in STEADY]
    before = pasts(saved, slow.record)
    assert before.keys() == {"speedup", "cpu_speedup"}
    assert np.exp(before["cpu_speedup"].logs).mean() == pytest.approx(6, rel=0.01)


def test_runs_before_the_cpu_clock_was_recorded(runs, side):
    """They are compared by the wall clock, and do not owe the other."""
    old, now = side(runs.speed(2.0)), side(runs.speed(2.0, cpu=3.0))
    found = changes(old, now)
    assert found["cpu_speedup"].verdict == "recorded"
    assert found["speedup"].verdict == "unchanged"
    assert changes(now, old)["cpu_speedup"].verdict == "missing"
    saved = [read_run(runs.save(runs.speed(value))) for value in STEADY]
    assert "0 earlier runs, 5 are needed" in pasts(saved, now.record)["cpu_speedup"].lack


def test_measured_again_in_several_processes(runs, side):
    logs = np.random.default_rng(0).normal(0.7, 0.1, 8)
    first, second = (side(processes_of(runs, x)).record for x in (logs[:5], logs[5:]))
    both = combined(first, second).metrics["speedup"]
    assert both.processes == 8
    assert both.deviation == pytest.approx(logs.std(ddof=1))
    old = side(runs.speed(2.0, processes=3)).record  # which does not say how they differ
    assert combined(old, second).metrics["speedup"].deviation is None


def test_two_runs_on_two_machines_are_not_compared(runs, side):
    change = changes(side(runs.speed(2.0, hardware="A")), side(runs.speed(1.0)))["speedup"]
    assert change.text == "speedup not comparable: hardware A then, CPU now"


def test_speeds_are_compared_only_among_as_many_cores(runs, side):
    """Where both runs say how many there are; scores are compared anyhow."""
    change = changes(side(runs.speed(2.0, cores=2)), side(runs.speed(1.0, cores=8)))["speedup"]
    assert change.text == "speedup not comparable: cores 2 then, 8 now"
    for then, now in (({"cores": 2}, {"cores": 2}), ({}, {"cores": 8}), ({"cores": None}, {})):
        change = changes(side(runs.speed(2.0, **then)), side(runs.speed(2.0, **now)))["speedup"]
        assert change.verdict != "not comparable"
    found = changes(side(runs.quality(NLL, cores=2)), side(runs.quality(NLL, cores=8)))
    assert all(change.verdict != "not comparable" for change in found.values())


def test_measured_again(runs, side):
    first, second = side(runs.speed(1.6)).record, side(runs.speed(2.5)).record
    both = combined(first, second).metrics["speedup"]
    assert both.value == pytest.approx(2.0)
    assert both.processes == 2
    # the interval of a mean of two
    assert math.log(both.bounds.high / both.value) == pytest.approx(
        2.3263 * 0.05 / math.sqrt(2), rel=1e-4
    )
    # three processes weigh three times as much as one
    third = side(runs.speed(2.0, processes=3)).record
    value = combined(side(runs.speed(1.0)).record, third).metrics["speedup"].value
    assert value == pytest.approx(2**0.75)


# --- whole runs ----------------------------------------------------------------------------


def references(runs, *asked):
    store = Store([runs.folder], runs.folder.parent / "accepted.json")
    return [store.either(name) for name in asked]


def test_side_by_side_shows_what_is_missing(runs):
    gone, new = runs.speed(1.0, case="decode[gone]"), runs.speed(1.0, case="decode[new]")
    broken = runs.sizes(case="quantize[broken]", size_mib=1)
    runs.save(runs.speed(2.0), gone, broken)
    runs.save(runs.speed(2.0), new, bitgate={"failed": {"quantize[broken]": "ValueError: no"}})
    a, b = references(runs, "0001", "0002")
    found = {(c.case, c.metric): c for c in side_by_side(a, b, DEFAULTS)}
    assert found["decode[a]", "speedup"].verdict == "unchanged"
    assert found["decode[gone]", ""].text == "missing: not in B (0002 (aaaaaaa))"
    assert found["decode[new]", ""].text == "missing: not in A (0001 (aaaaaaa))"
    assert found["quantize[broken]", ""].verdict == "regression"
    assert found["quantize[broken]", ""].text == "B failed to measure it: ValueError: no"
    only = side_by_side(a, b, DEFAULTS, lambda case: case == "decode[a]")
    assert {change.case for change in only} == {"decode[a]"}


@pytest.mark.parametrize("count", [4, 5, 7, 8])
@pytest.mark.parametrize("after", [0, 3])
def test_a_run_is_not_judged_by_a_spread_that_it_is_part_of(runs, count, after):
    """Nor by what came after it."""
    for value in [*STEADY[:count], 1.0, *[1.5] * after]:
        runs.save(runs.speed(value))
    a, b = references(runs, f"{count:04}", f"{count + 1:04}")
    found = {c.metric: c for c in side_by_side(a, b, DEFAULTS)}["speedup"]
    assert found.verdict == "regression", found.text
    history = f"by the spread of {count - 1} runs"
    assert (history in found.text) == (count > 5)


def test_one_correction_over_all_references(runs):
    """A p of 0.6 % is red alone, and not among five comparisons."""
    runs.save(*(runs.speed(2.0, case=f"decode[{name}]") for name in "abcde"))
    logs = 0.05 * math.sqrt(2) * stats.t.isf(0.006, 9) - math.log(0.98)
    slow = 2.0 * math.exp(-logs)
    runs.save(runs.speed(slow), *(runs.speed(2.0, case=f"decode[{name}]") for name in "bcde"))
    a, b = references(runs, "0001", "0002")
    alone = side_by_side(a, b, DEFAULTS, lambda case: case == "decode[a]")
    assert {c.metric: c for c in alone}["speedup"].p == pytest.approx(0.006, rel=1e-3)
    assert {c.metric: c for c in alone}["speedup"].verdict == "regression"
    found = {(c.case, c.metric): c for c in side_by_side(a, b, DEFAULTS)}
    assert found["decode[a]", "speedup"].p == pytest.approx(0.03, rel=1e-3)
    assert found["decode[a]", "speedup"].verdict == "inconclusive"


def test_against_several_references(runs, side):
    for value in STEADY:
        runs.save(runs.speed(value))
    store = Store([runs.folder], runs.folder.parent / "accepted.json")
    latest = store.reference("latest")
    accepted = Reference("accepted", [store.runs[-1]], store.passed)
    sides = {"decode[a]": side(runs.speed(1.0)), "decode[b]": side(runs.speed(1.0, "decode[b]"))}
    first, second = against(sides, [latest, accepted], DEFAULTS)
    (verdict,) = first.verdicts("decode[a]")
    assert (verdict.outcome, verdict.gate) == ("fail", "against latest")
    assert "50 % worse than 2 expected from history" in verdict.text
    assert verdict.text.endswith("[against latest]")
    (verdict,) = second.verdicts("decode[a]")
    assert "50 % worse than 2 in 0001" in verdict.text
    (verdict,) = first.verdicts("decode[b]")
    assert verdict.outcome == "inconclusive"
    assert verdict.text.startswith("no history yet: latest, the newest of which is 0008")
    assert first.verdicts("decode[other]") == []


def test_scores_that_cannot_be_read_are_no_pass(runs, side):
    path = runs.save(runs.quality(NLL))
    path.with_suffix(".parquet").write_bytes(b"broken")
    store = Store([runs.folder], runs.folder.parent / "accepted.json")
    (found,) = against(
        {"perplexity[a]": side(runs.quality(NLL), name="../now.json")},
        [store.reference("latest")],
        DEFAULTS,
    )
    (verdict,) = found.verdicts("perplexity[a]")
    assert verdict.outcome == "inconclusive"
    assert "its runs' scores are lost" in verdict.text


def test_metrics_that_share_a_reason_share_a_verdict(runs, side):
    now = {"perplexity[a]": side(runs.quality(NLL), name="../now.json")}
    runs.save(runs.quality(NLL, execution={"kernel": "other"}))
    (found,) = against(now, references(runs, "latest"), DEFAULTS)
    (verdict,) = found.verdicts("perplexity[a]")
    assert verdict.metric == "perplexity, perplexity_ratio, kl_divergence, top1_agreement"
    assert "not comparable: kernel other then, cpu-int4 now" in verdict.text
