"""This suite's own gate, by its own code: launches become records, and records are compared as
`bitgate compare` and `pytest bench --against` do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from record import EXECUTION, WORKLOAD, Recorded

from bitgate.gates.tolerances import DEFAULTS, Tolerance
from bitgate.history.against import against, side_by_side
from bitgate.history.change import TIMED, regressions
from bitgate.history.compare import combined
from bitgate.history.past import HISTORY
from bitgate.history.saved import SavedRun, Side
from bitgate.history.schema import Record
from bitgate.history.store import Reference
from bitgate.measure.processes import Between, Spread, deviation_over
from bitgate.measure.speed import speeds
from bitgate.metric import Metric

CASE = f"decode[{WORKLOAD.name}]"
CALIBRATED = 10  #: launches that `bitgate calibrate` takes by default
MOST = 16.0  #: no slowdown beyond this is looked for: 17 times the time
Drawn = NDArray[np.intp]
#: whether a slowdown is red, in one trial
Red = Callable[[float], bool]


@dataclass(frozen=True)
class Judge:
    """Judges with these tolerances, over these clocks."""

    recorded: Recorded
    tolerances: dict[str, Tolerance]

    @classmethod
    def of(cls, recorded: Recorded, tolerance: float, clocks: Sequence[str] = TIMED) -> Judge:
        return cls(recorded, {name: replace(DEFAULTS[name], worse=tolerance) for name in clocks})

    def measured(self, launches: Drawn, spread: Spread) -> Record:
        """What a run records of these launches; a launch that is drawn twice counts twice."""
        n, pairs = len(launches), self.recorded.pairs
        items = {name: x[launches].ravel() for name, x in self.recorded.seconds.items()}
        items |= {"launch": np.repeat(np.arange(n), pairs), "tokens": np.ones(n * pairs)}
        packed = Metric("packed_layers", 1, expected=1)
        found = speeds(items, WORKLOAD, EXECUTION, spread, packed, 0.98, 0.98)
        return Record.model_validate(
            {
                "case": CASE,
                "workload": {"kind": "decode", "name": WORKLOAD.name},
                "execution": vars(EXECUTION),
                "metrics": {m.name: m.record() for m in found if m.name in self.tolerances},
                "outcome": "recorded",
                "hardware": "the recorded one",
            }
        )

    def calibrated(self, launches: Drawn) -> Spread:
        """What `bitgate calibrate` would have kept of these launches."""
        number = np.arange(len(launches))
        wall, cpu = (
            Between(
                deviation_over(self.recorded.log_ratios(clock)[launches], number),
                len(launches),
                "calibrated",
            )
            for clock in ("wall", "CPU")
        )
        return Spread(wall, wall, cpu)

    def compare(self, then: Record, now: Record) -> bool:
        """Whether `bitgate compare` exits with 1."""
        a, b = (Reference(name, [_saved(name, one)]) for name, one in (("A", then), ("B", now)))
        return bool(regressions(side_by_side(a, b, self.tolerances)))

    def against(self, before: Sequence[Record], now: Record, again: Callable[[], Record]) -> bool:
        """Whether `pytest bench --against latest` is red; what is slow is measured `again`."""
        history = [_saved(f"{at:04}", record) for at, record in enumerate(before)]
        latest = Reference("latest", history, history)

        def slow(record: Record) -> bool:
            (found,) = against({CASE: Side(record, "", {})}, [latest], self.tolerances)
            return bool(regressions(found.changes))

        return slow(now) and slow(combined(now, again()))


def _saved(name: str, record: Record) -> SavedRun:
    return SavedRun(Path(name), name, None, name, {CASE: (record,)}, {}, 0)


def slower(record: Record, share: float) -> Record:
    """The same launches, had each step of the quantized model taken so much longer by both clocks:
    0.05 is 5 %."""
    metrics = {}
    for name, value in record.metrics.items():
        update: dict[str, object] = {"value": value.value / (1 + share)}
        if value.bounds is not None:
            low, high = (limit / (1 + share) for limit in (value.bounds.low, value.bounds.high))
            update["interval"] = value.bounds.model_copy(update={"low": low, "high": high})
        metrics[name] = value.model_copy(update=update)
    return record.model_copy(update={"metrics": metrics})


def compared(judge: Judge, n: int, rng: np.random.Generator) -> Red:
    """One trial: two runs of `n` launches. Whether a slowdown of the second is red."""
    draw = _drawing(judge, rng)
    spread = judge.calibrated(draw(CALIBRATED))
    then, now = (judge.measured(draw(n), spread) for _ in range(2))
    return lambda share: judge.compare(then, slower(now, share))


def predicted(judge: Judge, n: int, rng: np.random.Generator) -> Red:
    """One trial: `HISTORY` runs of `n` launches, and one more."""
    draw = _drawing(judge, rng)
    spread = judge.calibrated(draw(CALIBRATED))
    *before, now, again = (judge.measured(draw(n), spread) for _ in range(HISTORY + 2))
    return lambda share: judge.against(before, slower(now, share), lambda: slower(again, share))


#: how runs of so many launches, drawn so, are judged
Way = Callable[[Judge, int, np.random.Generator], Red]


def _drawing(judge: Judge, rng: np.random.Generator) -> Callable[[int], Drawn]:
    return lambda count: rng.integers(0, len(judge.recorded), count)


def smallest(red: Red, within: float = 0.001) -> float:
    """The smallest slowdown that is red, to a tenth of a per cent; 0 for a false alarm."""
    if red(0.0):
        return 0.0
    low, high = 0.0, 0.05
    while not red(high):
        low, high = high, 2 * high
        if high > MOST:
            return np.inf
    while high - low > within:
        middle = (low + high) / 2
        low, high = (low, middle) if red(middle) else (middle, high)
    return high
