"""Paired speed, of models whose steps take a known time."""

import math
import time
from contextlib import contextmanager

import numpy as np
import pytest

from bitgate.catalog import Execution, PhaseWorkload
from bitgate.measure import speed
from bitgate.measure.measurement import MeasureError
from bitgate.measure.processes import ASSUMED, Between, Spread
from bitgate.measure.speed import (
    PAIRS_PER_BATCH,
    WARM_STEPS,
    paired_steps,
    prompt_of,
    speeds,
    timed,
)
from bitgate.metric import Metric
from bitgate.statistics import process_median


class Sleeper:
    """A served model that sleeps; `log`, shared by two, says who did what."""

    vocabulary = 100
    packed_layers, expected_layers = 3, 4
    execution = Execution("cpu", "float32", 1, "torch")

    def __init__(self, name, log, step=0.0, prompt=0.0, context=None):
        self.name, self.log, self.step, self.prompt = name, log, step, prompt
        self.context = context
        self.room = 0

    def prefill(self, tokens, room):
        self.log.append((self.name, "prefill"))
        self.room = room
        time.sleep(self.prompt)

    def decode_step(self):
        assert self.room > 0, "the output is exhausted"
        self.room -= 1
        self.log.append((self.name, "step"))
        time.sleep(self.step)


def decoding(**changes):
    return PhaseWorkload(**{"kind": "decode", "name": "b1", "prompt": 4, "output": 100, **changes})


def prefilling(**changes):
    return PhaseWorkload(**{"kind": "prefill", "name": "p4", "prompt": 4, **changes})


def run(items_of, workload, base, quantized, limit=8):
    """The log and the observations of a measurement."""
    log = []
    models = Sleeper("B", log, **quantized), Sleeper("A", log, **base)
    measurement = paired_steps(*models, workload, limit=limit)
    return log, items_of(measurement), measurement


@pytest.fixture(scope="module")
def decoded(items_of):
    """Steps of 4 ms beside steps of 8 ms."""
    return run(items_of, decoding(output=200, batch=2), {"step": 0.008}, {"step": 0.004})


@pytest.fixture(scope="module")
def prefilled(items_of):
    return run(items_of, prefilling(batch=3), {"prompt": 0.03}, {"prompt": 0.06})


@pytest.fixture
def short_steps(monkeypatch):
    """Steps need not last long where it is not time that is tested."""
    monkeypatch.setattr(speed, "SHORTEST_STEP", 0.002)


def runs_of(log):
    """Consecutive calls of one model, counted: [["A", "prefill", 1], ["A", "step", 3], ...]."""
    found = []
    for name, what in log:
        if found and found[-1][:2] == [name, what]:
            found[-1][2] += 1
        else:
            found.append([name, what, 1])
    return found


# --- decoding ------------------------------------------------------------------------------


def test_turns_alternate(decoded):
    log, items, _ = decoded
    assert items["order"].tolist() == ["AB", "BA"] * 4
    assert items["pair"].tolist() == list(range(8))
    steps = int(items["tokens"][0]) // 2
    # AB BA AB BA: the same model ends a pair and begins the next
    warm = 2 * 2 * WARM_STEPS
    timed_steps = [name for name, what in log if what == "step"][warm:]
    assert timed_steps == [name for pair in "ABBA" * 4 for name in [pair] * steps]


def test_steps_are_grouped_to_last_long_enough(decoded):
    _, items, _ = decoded
    steps = items["tokens"] / 2
    assert set(steps.tolist()) <= {11.0, 12.0, 13.0}, "50 ms of the faster one, 4 ms at least each"
    assert items["seconds"].min() > 0.95 * 0.05
    assert (items["seconds"] >= 0.004 * steps).all()
    assert (items["base_seconds"] >= 0.008 * steps).all()
    assert items["cpu_seconds"].max() < 0.02, "sleeping costs no CPU time"


def test_the_interval_holds_the_true_ratio(decoded, metrics_of):
    _, items, measurement = decoded
    metric = metrics_of(measurement, items)["speedup"]
    assert metric.low < 2 < metric.high
    assert metric.value == pytest.approx(
        math.exp(np.median(np.log(items["base_seconds"] / items["seconds"]))), rel=1e-12
    )
    # never narrower than processes differ: 3.746 standard deviations at 98 %, 4 degrees of freedom
    assert metric.high / metric.value >= math.exp(3.746 * 0.05)
    assert metric.value / metric.low == pytest.approx(metric.high / metric.value)
    assert (metric.interval.unit, metric.interval.n) == ("process", 1)
    assert "8 steps" in metric.interval.method
    assert "5.0 % between processes (assumed: run bitgate calibrate)" in metric.interval.method
    assert items["launch"].tolist() == [0] * 8


def test_a_calibrated_spread_takes_the_place_of_the_assumed_one(decoded, metrics_of):
    _, items, measurement = decoded
    source = "calibrated on 2026-11-22, 10 launches"
    measurement = paired_steps(
        measurement.quantized,
        measurement.base,
        measurement.workload,
        spread=Spread(Between(0.02, 10, source), Between(0.1, 10, source)),
    )
    metrics = metrics_of(measurement, items)
    speedup, own = metrics["speedup"], metrics["tokens_per_second"]
    # 2.821 standard deviations at 98 %, 9 degrees of freedom
    wanted = process_median(
        np.log(items["base_seconds"] / items["seconds"]), 0.02, 0.98, processes=10
    )
    assert math.log(speedup.high / speedup.value) == pytest.approx(wanted.high - wanted.value)
    assert math.log(own.high / own.value) >= 2.821 * 0.1
    assert speedup.interval.method == (
        f"wall clock, median of 8 steps widened by 2.0 % between processes ({source})"
    )


# --- clocks --------------------------------------------------------------------------------


def seen(launches=1, **changes):
    """Eight pairs of each launch: twice as fast by the wall clock, three times by the CPU's."""
    n = 8 * launches
    columns = {"base_seconds": 0.2, "seconds": 0.1, "base_cpu_seconds": 0.15, "cpu_seconds": 0.05}
    items = {name: np.full(n, value) for name, value in (columns | {"tokens": 4}).items()}
    return items | {"launch": np.repeat(np.arange(launches), 8)} | changes


def speeds_of(items, device="cpu", threads=1, spread=ASSUMED):
    execution = Execution(device, "float32", threads, "torch")
    packed = Metric("packed_layers", 3, expected=3)
    found = speeds(items, decoding(), execution, spread, packed, 0.98, 0.98)
    return {metric.name: metric for metric in found}


def test_one_thread_is_judged_by_both_clocks():
    found = speeds_of(seen())
    assert found["speedup"].value == pytest.approx(2)
    assert found["cpu_speedup"].value == pytest.approx(3)
    assert "wall clock" in str(found["speedup"])
    assert "CPU clock" in str(found["cpu_speedup"])
    for name in ("latency_ms", "tokens_per_second", "base_tokens_per_second"):
        assert "wall clock" in str(found[name])


@pytest.mark.parametrize(
    ("items", "how"),
    [
        (seen(), {"threads": 2}),  # the sum over threads is no time
        (seen(), {"device": "cuda"}),
        (seen(cpu_seconds=np.array([0.05] * 7 + [0.0])), {}),  # a clock that did not tick
    ],
)
def test_else_by_the_wall_clock_alone(items, how):
    found = speeds_of(items, **how)
    assert "cpu_speedup" not in found
    assert found["speedup"].value == pytest.approx(2)


def test_a_wait_is_seen_by_the_wall_clock_alone(items_of, metrics_of):
    """Both compute alike for 10 ms a step, and one waits for another 40."""

    class Computes(Sleeper):
        def decode_step(self):
            end = time.process_time() + 0.01
            while time.process_time() < end:
                pass
            super().decode_step()

    log = []
    quantized, base = Computes("B", log, step=0.04), Computes("A", log)
    measurement = paired_steps(quantized, base, decoding(), limit=8)
    found = metrics_of(measurement, items_of(measurement))
    assert found["speedup"].value < 0.75
    assert found["cpu_speedup"].value == pytest.approx(1, abs=0.1)


def test_each_clock_has_a_spread_of_its_own():
    by_wall, by_cpu = Between(0.05, 10, "x"), Between(0.01, 10, "x")
    found = speeds_of(seen(), spread=Spread(by_wall, by_wall, by_cpu))
    widths = [math.log(found[name].high / found[name].low) for name in ("speedup", "cpu_speedup")]
    assert widths[0] == pytest.approx(5 * widths[1])
    alike = speeds_of(seen(), spread=Spread(by_wall, by_wall))
    width = math.log(alike["cpu_speedup"].high / alike["cpu_speedup"].low)
    assert width == pytest.approx(widths[0])


def test_several_processes_record_how_much_they_differ():
    factor = np.repeat([1.0, 1.1, 1.2], 8)
    found = speeds_of(seen(3, base_seconds=0.2 * factor))
    wanted = np.log([1.0, 1.1, 1.2]).std(ddof=1)
    assert found["speedup"].interval.deviation == pytest.approx(wanted)
    assert found["speedup"].record()["interval"]["deviation"] == pytest.approx(wanted)
    assert Metric.of_record("speedup", found["speedup"].record()) == found["speedup"]
    assert "deviation" not in speeds_of(seen())["speedup"].record()["interval"]


def test_speed_and_latency_are_one_quantity(decoded, metrics_of):
    _, items, measurement = decoded
    metrics = metrics_of(measurement, items)
    own, latency = metrics["tokens_per_second"], metrics["latency_ms"]
    # two sequences at once: a step makes two tokens
    assert latency.value == pytest.approx(
        1000 * np.exp(np.median(np.log(items["seconds"] / items["tokens"] * 2))), rel=1e-12
    )
    assert own.value * latency.value == pytest.approx(2 * 1000)
    assert 4 <= latency.value < 5
    assert metrics["base_tokens_per_second"].value <= 2 / 0.008
    for metric in (own, latency, metrics["base_tokens_per_second"]):
        assert metric.high / metric.low >= math.exp(2 * 3.746 * 0.45)
    packed = metrics["packed_layers"]
    assert (packed.value, packed.expected) == (3, 4)


def test_the_prompt_starts_again_when_the_output_is_used_up(items_of, short_steps):
    log, items, _ = run(items_of, decoding(output=10), {"step": 0.001}, {"step": 0.001})
    steps = int(items["tokens"][0])
    assert steps in (1, 2)
    calls = runs_of(log)
    warm = [["A", "prefill", 1], ["B", "prefill", 1], ["A", "step", 3], ["B", "step", 3]]
    assert calls[:4] == calls[4:8] == warm
    starts = [number for number, call in enumerate(calls) if call[:2] == ["A", "prefill"]]
    assert len(starts) == 2 + math.ceil((8 - 7 // steps) / (10 // steps))
    for start in starts:
        assert calls[start + 1] == ["B", "prefill", 1], "both at once, outside of what is timed"
    assert len(items["pair"]) == 8


def test_an_output_that_is_too_short_is_lengthened(items_of):
    log, items, _ = run(items_of, decoding(output=10), {"step": 0.001}, {"step": 0.002})
    steps = int(items["tokens"][0])
    assert 10 < steps <= 50, "50 ms of the faster one, 1 ms at least each"
    assert items["seconds"].min() > 0.001 * steps
    assert items["order"].tolist() == ["AB", "BA"] * 4
    calls = runs_of(log)
    assert calls[2:6] == [  # again from the prompt, with room for more
        ["A", "step", WARM_STEPS],
        ["B", "step", WARM_STEPS],
        ["A", "prefill", 1],
        ["B", "prefill", 1],
    ]


def test_an_output_is_lengthened_as_far_as_the_context_goes(items_of, short_steps):
    """Which takes two steps here; there is no room for the same again."""
    contexts = {"A": 1000, "B": 3 + 4 + WARM_STEPS}
    log = []
    quantized, base = (Sleeper(name, log, 0.0015, context=contexts[name]) for name in "BA")
    measurement = paired_steps(quantized, base, decoding(output=1), limit=8)
    assert len(items_of(measurement)["seconds"]) == 8
    for name, what, count in runs_of(log):
        if name == "B" and what == "step":
            assert count <= 3 + WARM_STEPS


def test_a_context_that_is_too_short_says_what_it_takes(items_of):
    with pytest.raises(MeasureError) as caught:
        run(items_of, decoding(output=10), {"step": 0.001, "context": 14}, {"step": 0.002})
    message = str(caught.value)
    assert message.startswith("workload b1: steps of 50 ms take an output of ")
    assert "room for 10 after a prompt of 4: shorten the prompt" in message


def test_so_few_tokens_that_not_even_the_first_steps_fit(items_of, short_steps):
    _, items, _ = run(items_of, decoding(output=2), {"step": 0.004}, {"step": 0.004})
    assert set(items["tokens"].tolist()) == {1}


@pytest.mark.parametrize("limit", [1, 5, 12])
def test_the_limit(items_of, short_steps, limit):
    models = Sleeper("B", [], step=0.001), Sleeper("A", [], step=0.001)
    measurement = paired_steps(*models, decoding(), limit=limit)
    batches = list(measurement.batches())
    sizes = [len(batch.seconds) for batch in batches]
    assert sum(sizes) == limit
    assert all(size == PAIRS_PER_BATCH for size in sizes[:-1])
    for batch in batches:
        assert list(batch.seconds) == batch.items["seconds"]
        assert {len(column) for column in batch.items.values()} == {len(batch.seconds)}


def test_stopping_early_runs_nothing_more(items_of, short_steps):
    log = []
    measurement = paired_steps(
        Sleeper("B", log, step=0.001), Sleeper("A", log, step=0.001), decoding(), limit=200
    )
    batches = measurement.batches()
    next(batches)
    seen = len(log)
    batches.close()
    assert len(log) == seen


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_how_much_is_timed_at_once_is_found_alone(kind):
    """Beside others everything takes longer: ten times, here."""
    log = []

    class Disturbed(Sleeper):
        disturbance = 10

        def decode_step(self):
            time.sleep((self.disturbance - 1) * self.step)
            super().decode_step()

        def prefill(self, tokens, room):
            time.sleep((self.disturbance - 1) * self.prompt)
            super().prefill(tokens, room)

    @contextmanager
    def alone():
        log.append("alone")
        Disturbed.disturbance = 1
        try:
            yield
        finally:
            log.append("not alone")
            Disturbed.disturbance = 10

    workload = decoding(output=30) if kind == "decode" else prefilling()
    models = [Disturbed(name, log, step=0.008, prompt=0.008) for name in "BA"]
    batches = list(paired_steps(*models, workload, alone, limit=4).batches())
    # a disturbed choice would give steps of a tenth of that
    assert min(min(batch.items["base_seconds"]) for batch in batches) >= 0.5 * 0.05
    if kind == "decode":
        assert 5 <= batches[0].items["tokens"][0] <= 7
    done = [name for name, *_ in log]
    begin, end = log.index("alone"), log.index("not alone")
    assert {("A", "prefill"), ("B", "prefill")} <= set(log[:begin]), "warm before that"
    assert end == len(done) - 1


# --- prefill -------------------------------------------------------------------------------


def test_prompts_are_read_in_turns(prefilled, metrics_of):
    log, items, measurement = prefilled
    assert {what for _, what in log} == {"prefill"}
    assert items["order"].tolist() == ["AB", "BA"] * 4
    times = int(items["tokens"][0]) // (3 * 4)
    assert times == 2, "30 ms twice, to last 50"
    timed_prompts = [name for name, _ in log[-2 * 8 * times :]]
    assert timed_prompts == [name for pair in "ABBA" * 4 for name in [pair] * times]
    metrics = metrics_of(measurement, items)
    assert metrics["speedup"].low < 0.5 < metrics["speedup"].high
    assert 60 <= metrics["latency_ms"].value < 70, "of the whole prompt"
    assert metrics["tokens_per_second"].value == pytest.approx(
        3 * 4 * 1000 / metrics["latency_ms"].value
    )


# --- a real model --------------------------------------------------------------------------


def test_a_model_beside_itself(llama, served, items_of, metrics_of, short_steps):
    base = llama()
    workload = decoding(prompt=4, output=20)
    measurement = paired_steps(served(base), served(base), workload, limit=8)
    metrics = metrics_of(measurement, items_of(measurement))
    assert 0.5 < metrics["speedup"].value < 2
    measurement = paired_steps(served(base), served(base), prefilling(prompt=16), limit=8)
    metrics = metrics_of(measurement, items_of(measurement))
    assert 0.5 < metrics["speedup"].value < 2


# --- parts ---------------------------------------------------------------------------------


def test_prompts_are_the_same_every_time():
    workload = decoding(batch=2, prompt=7)
    prompt = prompt_of(workload, 50)
    assert prompt.shape == (2, 7)
    assert 0 <= int(prompt.min()) < int(prompt.max()) < 50
    assert (prompt == prompt_of(workload, 50)).all()


def test_wall_and_cpu_time():
    wall, cpu = timed(lambda: time.sleep(0.02))
    assert 0.02 <= wall < 0.2
    assert cpu < 0.01

    def busy():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    wall, cpu = timed(busy)
    assert cpu >= 0.02
    assert wall >= 0.9 * cpu


def test_no_garbage_is_collected_while_timing():
    import gc

    seen = []
    timed(lambda: seen.append(gc.isenabled()))
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        timed(lambda: 1 / 0)
    assert gc.isenabled()
