"""A case then and now, metric by metric.

Quality is paired by window: the same tokens, scored then and now. Speed is the paired ratio to the
base, judged by how much it varied over earlier runs; absolute times are shown and never judged, as
they vary by half between processes. What is exact is compared as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from bitgate.gates.tolerances import Tolerance
from bitgate.history.change import TIMED, Change, Verdict
from bitgate.history.evidence import Evidence, apart, error_of, predicted, spread
from bitgate.history.pairs import PAIRED, Pairs
from bitgate.history.past import Past
from bitgate.history.saved import Side
from bitgate.history.schema import Record, Value
from bitgate.history.store import differing


def compare(
    then: Side,
    now: Side,
    tolerances: Mapping[str, Tolerance],
    earlier: Past,
    *,
    predict: bool = False,
) -> list[Change]:
    """Every metric of a case then and now, not yet judged together: `judged` does that.

    `predict` judges a speed by the history alone, which `then` is the newest of; else it is
    compared with `then`, and the history, if there is enough, says how much speeds vary.
    """
    pairs = Pairs(then, now)
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
            # nobody misses what nobody judges: a later version may record more
            verdict: Verdict = "recorded" if tolerance is None else "missing"
            found.append(replace(plain, verdict=verdict, why=which))
        elif tolerance is None or plain.now.better == "neither":
            found.append(_shown(plain, plain.then, plain.now))
        else:
            known = replace(plain, scale=tolerance.scale, tolerance=tolerance.worse)
            found.append(_compared(known, plain.then, plain.now, pairs, earlier, predict))
    return found


def _shown(plain: Change, then: Value, now: Value) -> Change:
    """A metric that nobody judges."""
    usable = all(math.isfinite(v.value) and v.value > 0 for v in (then, now))
    evidence = _exact(plain, then, now) if usable else None
    return replace(plain, evidence=evidence)


def _compared(
    known: Change, then: Value, now: Value, pairs: Pairs, earlier: Past, predict: bool
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
    if known.metric in PAIRED:
        found = pairs.evidence(known.metric)
        if isinstance(found, str):
            return refused(found)
    elif then.interval == "exact" and now.interval == "exact":
        found = _exact(known, then, now)
    else:
        return refused("it is exact in only one of the two")
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
    value, processes = math.log(now.value), max(1, now.processes)
    if predict:
        if not earlier.enough:
            return replace(known, verdict="no history yet", why=earlier.lack)
        how = f"prediction from {len(earlier.logs)} runs"
        found = predicted(value, processes, earlier.logs, earlier.processes, how)
        expected = then.model_copy(update={"value": math.exp(value - found.change)})
        return replace(_open(known, found), then=expected, run="")
    change = value - math.log(then.value)
    if earlier.enough:
        _, deviation, _ = spread(earlier.logs, earlier.processes)
        error = deviation * math.sqrt(1 / processes + 1 / max(1, then.processes))
        how = f"by the spread of {len(earlier.logs)} runs"
        return _open(known, Evidence(change, error, len(earlier.logs) - 1, how))
    errors = [_error(value) for value in (then, now)]
    if not all(math.isfinite(error) for error in errors):
        why = f"no interval was recorded, and there is too little history: {earlier.lack}"
        return replace(known, verdict="not comparable", why=why)
    how = f"by both intervals: {earlier.lack}"
    return _open(known, apart(change, (errors[0], errors[1]), how))


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
            bounds = {"low": math.exp(mean - half), "high": math.exp(mean + half), "n": total}
            update["interval"] = old.bounds.model_copy(update={**bounds, "unit": "process"})
        metrics[name] = old.model_copy(update=update)
    return first.model_copy(update={"metrics": metrics})


def _half(value: Value) -> float:
    bounds = value.bounds
    if bounds is None or not 0 < bounds.low <= bounds.high:
        return math.nan
    return math.log(bounds.high / bounds.low) / 2
