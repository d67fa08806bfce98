"""A case then and now, metric by metric.

Quality is paired by window or item: the same tokens, scored then and now. Speed is the paired ratio
to the base, judged by how much it varied over earlier runs; absolute times are shown and never
judged, as they vary by half between processes. What is exact is compared as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from bitgate.gates.tolerances import Tolerance
from bitgate.history import layers
from bitgate.history.change import TIMED, Change, Verdict
from bitgate.history.evidence import (
    Evidence,
    Variance,
    apart,
    error_of,
    pooled,
    predicted,
    spread,
    within,
)
from bitgate.history.pairs import pairs_of
from bitgate.history.past import Past
from bitgate.history.saved import Side
from bitgate.history.schema import Record, Value
from bitgate.history.shared import Shared
from bitgate.history.store import differing

#: metrics that earlier versions did not record
NEWER = ("cpu_speedup", layers.METRIC)
BASES = ("base_perplexity", "base_accuracy")
MEANT = "if that is meant, accept this run, or measure once without --against"
#: with fewer degrees of freedom, two runs' own processes say too little of how processes differ
LEAST_FREEDOM = 4


def compare(
    then: Side,
    now: Side,
    tolerances: Mapping[str, Tolerance],
    earlier: Mapping[str, Past],
    *,
    predict: bool = False,
) -> list[Change]:
    """Every metric of a case then and now, not yet judged together: `judged` does that.

    `predict` judges a speed by the history alone, which `then` is the newest of; else it is
    compared with `then`, and the history, if there is enough, says how much speeds vary; else the
    processes of both do, or their intervals. `earlier` is the history of each speed, by metric.
    """
    pairs = pairs_of(then, now)
    found = []
    for name in dict.fromkeys([*now.record.metrics, *then.record.metrics]):
        plain = Change(
            now.record.case,
            name,
            then=then.record.metrics.get(name),
            now=now.record.metrics.get(name),
            run=then.run,
        )
        tolerance = tolerances.get(name)
        if plain.then is None or plain.now is None:
            which = f"{then.run} does not have it" if plain.then is None else "it was not measured"
            # nobody misses what nobody judges, nor what an earlier version did not know
            more = tolerance is None or (plain.then is None and name in NEWER)
            verdict: Verdict = "recorded" if more else "missing"
            found.append(replace(plain, verdict=verdict, why=which))
        elif name in BASES and (another := _another(pairs)):
            # said once, here: nothing that is paired with the base can be compared any more
            found.append(replace(plain, verdict="regression", why=f"is of {another}; {MEANT}"))
        elif tolerance is None or plain.now.better == "neither":
            found.append(_shown(plain, plain.then, plain.now))
        else:
            known = replace(plain, scale=tolerance.scale, tolerance=tolerance.worse)
            before = earlier.get(name, Past())
            found.append(_compared(known, plain.then, plain.now, pairs, before, predict))
    return found


def _another(pairs: Shared) -> str | None:
    """How the text or the base changed, although nothing that is recorded of them says so."""
    known = differing(pairs.then.record, pairs.now.record, timed=False)
    return None if known else pairs.another


def _shown(plain: Change, then: Value, now: Value) -> Change:
    """A metric that nobody judges."""
    usable = all(math.isfinite(v.value) and v.value > 0 for v in (then, now))
    evidence = _exact(plain, then, now) if usable else None
    return replace(plain, evidence=evidence)


def _compared(
    known: Change,
    then: Value,
    now: Value,
    pairs: Shared,
    earlier: Past,
    predict: bool,
) -> Change:
    def refused(why: str) -> Change:
        return replace(known, verdict="not comparable", why=why)

    if not now.finite:
        return replace(known, verdict="regression", why=f"{now.value} is not a finite number")
    if not then.finite:
        return refused(f"it was {then.value} in {known.run}")
    # what a speed is predicted from was chosen to be alike, whatever the newest run is
    if not (known.timed and predict) and (
        why := differing(pairs.then.record, pairs.now.record, timed=known.timed)
    ):
        return refused(", ".join(why))
    if known.timed:
        return _speed(known, then, now, earlier, predict)
    found: Evidence | str
    if known.metric in pairs.paired:
        found = pairs.evidence(known.metric)
    elif known.metric == layers.METRIC:
        found = layers.evidence(pairs.then, pairs.now)
    elif then.interval == "exact" and now.interval == "exact":
        found = _exact(known, then, now)
    else:
        found = "it is exact in only one of the two"
    if isinstance(found, str):
        return refused(found)
    return _open(known, found)


def _open(known: Change, evidence: Evidence) -> Change:
    """Still to be judged, together with all others."""
    return replace(known, evidence=evidence, why=evidence.method, judge=True)


def _exact(known: Change, then: Value, now: Value) -> Evidence:
    if known.scale == "difference" or now.value == then.value:
        return Evidence(now.value - then.value, 0, math.inf, "exact")
    if now.value <= 0 or then.value <= 0:
        return Evidence(math.copysign(math.inf, now.value - then.value), 0, math.inf, "exact")
    return Evidence(math.log(now.value / then.value), 0, math.inf, "exact")


# --- speed ---------------------------------------------------------------------------------


def _speed(known: Change, then: Value, now: Value, earlier: Past, predict: bool) -> Change:
    if min(then.value, now.value) <= 0:
        return replace(known, verdict="not comparable", why="a speed is above 0")
    value = math.log(now.value)
    if predict:
        if not earlier.enough:
            return replace(known, verdict="no history yet", why=earlier.lack)
        how, inside = f"prediction from {_history(earlier)}", _inside(earlier, now)
        found = predicted(value, now.processes, earlier.logs, earlier.processes, how, inside)
        expected = then.model_copy(update={"value": math.exp(value - found.change)})
        return replace(_open(known, found), then=expected, run="")
    return _between(known, then, now, earlier)


def _between(known: Change, then: Value, now: Value, earlier: Past) -> Change:
    """Of two speeds: by how much they varied before, if that is known, else by the processes of
    both, if these are several, else by both intervals."""
    change = math.log(now.value) - math.log(then.value)
    both = (then.processes, now.processes)
    inside = within((then.deviation, now.deviation), both)
    if earlier.enough:
        _, deviation, _ = spread(earlier.logs, earlier.processes)
        runs = Variance(deviation**2, len(earlier.logs) - 1)
        variance, how = pooled(runs, _inside(earlier, now)), f"by the spread of {_history(earlier)}"
    elif inside.freedom >= LEAST_FREEDOM and inside.value > 0:
        variance, how = inside, f"Student t over {both[0]} and {both[1]} processes"
    else:
        return _by_intervals(known, change, (then, now), earlier)
    error = math.sqrt(variance.value * sum(1 / n for n in both))
    return _open(known, Evidence(change, error, variance.freedom, how))


def _by_intervals(
    known: Change, change: float, values: tuple[Value, Value], earlier: Past
) -> Change:
    errors = [_error(value) for value in values]
    if not all(math.isfinite(error) for error in errors):
        why = f"no interval was recorded, and there is too little history: {earlier.lack}"
        return replace(known, verdict="not comparable", why=why)
    how = f"by both intervals: {earlier.lack}"
    return _open(known, apart(change, (errors[0], errors[1]), how))


def _inside(earlier: Past, now: Value) -> Variance:
    """Of the processes in each of the runs before, and in this one."""
    return within([*earlier.deviations, now.deviation], [*earlier.processes, now.processes])


def _history(earlier: Past) -> str:
    runs, processes = len(earlier.logs), sum(earlier.processes)
    return f"{runs} runs" if processes == runs else f"{runs} runs of {processes} processes"


def _error(value: Value) -> float:
    """The standard error of a logarithm, from its interval."""
    bounds = value.bounds
    if bounds is None or not 0 < bounds.low <= bounds.high < math.inf or not 0 < bounds.level < 1:
        return math.nan
    return error_of(math.log(bounds.low), math.log(bounds.high), bounds.level)


def combined(first: Record, again: Record) -> Record:
    """One record of two measurements of a speed, each in processes of its own: the mean of the
    logarithms, with the interval of a mean. What the second lacks stays as it was."""
    metrics = dict(first.metrics)
    for name in TIMED:
        old, new = first.metrics.get(name), again.metrics.get(name)
        if old is None or new is None or not old.value > 0 or not new.value > 0:
            continue
        counts = max(1, old.processes), max(1, new.processes)
        total = sum(counts)
        mean = sum(n * math.log(v.value) for n, v in zip(counts, (old, new), strict=True)) / total
        half = math.hypot(*(n * _half(v) for n, v in zip(counts, (old, new), strict=True))) / total
        update: dict[str, object] = {"value": math.exp(mean)}
        if old.bounds is not None and math.isfinite(half):
            bounds: dict[str, object] = {
                "low": math.exp(mean - half),
                "high": math.exp(mean + half),
                "unit": "process",
                "n": total,
                "deviation": _deviation(mean, (old, new)),
            }
            update["interval"] = old.bounds.model_copy(update=bounds)
        metrics[name] = old.model_copy(update=update)
    return first.model_copy(update={"metrics": metrics})


def _deviation(mean: float, values: tuple[Value, Value]) -> float | None:
    """Over the processes of both."""
    squares, total = 0.0, 0
    for value in values:
        n = max(1, value.processes)
        if n > 1 and value.deviation is None:
            return None
        squares += (n - 1) * (value.deviation or 0) ** 2 + n * (math.log(value.value) - mean) ** 2
        total += n
    return math.sqrt(squares / (total - 1))


def _half(value: Value) -> float:
    bounds = value.bounds
    if bounds is None or not 0 < bounds.low <= bounds.high:
        return math.nan
    return math.log(bounds.high / bounds.low) / 2
