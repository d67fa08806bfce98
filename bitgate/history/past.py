"""How fast a case was over the last runs: what a speed of now is judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitgate.history.change import TIMED
from bitgate.history.saved import SavedRun
from bitgate.history.schema import Record
from bitgate.history.store import differing
from bitgate.metric import plural

#: runs that a speed is predicted from, and how few will do
HISTORY, LEAST_HISTORY = 8, 5
#: runs since the level changed, which will do where it surely did, and how sure that is
LEAST_LEVEL, CHANGED = 3, 0.001


@dataclass(frozen=True)
class Past:
    """The latest earlier speeds of a case that was executed alike on the same hardware.

    `logs` are logarithms, `processes` says of how many processes each is the mean.
    """

    logs: Sequence[float] = ()
    processes: Sequence[int] = ()
    #: of those with several processes: the standard deviation over them
    deviations: Sequence[float | None] = ()
    #: why others do not count, and how many
    left_out: Mapping[str, int] | None = None
    #: whether these are only the runs since the speed changed its level
    since_change: bool = False

    @property
    def enough(self) -> bool:
        return len(self.logs) >= (LEAST_LEVEL if self.since_change else LEAST_HISTORY)

    @property
    def lack(self) -> str:
        """`3 earlier runs, 5 are needed (2 left out: threads 2 then, 1 now)`."""
        found = (
            f"{len(self.logs)} earlier {plural('run', len(self.logs))}, {LEAST_HISTORY} are needed"
        )
        others = [f"{count} left out: {why}" for why, count in (self.left_out or {}).items()]
        return f"{found} ({'; '.join(others)})" if others else found


def pasts(history: Sequence[SavedRun], now: Record) -> dict[str, Past]:
    """By metric, for each speed that `now` has."""
    return {name: past(history, now, name) for name in TIMED if name in now.metrics}


def past(history: Sequence[SavedRun], now: Record, metric: str = "speedup") -> Past:
    """The last `HISTORY` of the runs, newest first, that say something of `now`; where the speed
    changed its level among them, those since, as older ones would pass for noise."""
    logs: list[float] = []
    processes: list[int] = []
    deviations: list[float | None] = []
    left_out: dict[str, int] = {}
    for run in history:
        if len(logs) == HISTORY:
            break
        records = [record for record in run.records.get(now.case, ()) if metric in record.metrics]
        whys = [_unusable(record, now, metric) for record in records]
        for record, why in zip(records, whys, strict=True):
            if not why:
                value = record.metrics[metric]
                logs.append(math.log(value.value))
                processes.append(max(1, value.processes))
                deviations.append(value.deviation)
                break
        else:
            for why in whys[:1]:
                left_out[why] = left_out.get(why, 0) + 1
    level = _since_the_last_change(logs)
    if level < len(logs):
        left_out["before the speed changed"] = len(logs) - level
    some = slice(level)
    return Past(logs[some], processes[some], deviations[some], left_out, level < len(logs))


def _since_the_last_change(logs: Sequence[float]) -> int:
    """How many of the values, the newest first, are of the newest level."""
    from bitgate.history.changepoint import change_points

    changes = change_points(logs[::-1], CHANGED)
    return len(logs) - changes[-1].at if changes else len(logs)


def _unusable(then: Record, now: Record, metric: str) -> str:
    value = then.metrics[metric].value
    if not (math.isfinite(value) and value > 0):
        return f"{metric} {value}"
    return ", ".join(differing(then, now, timed=True))
