"""How fast a case was over the last runs: what a speed of now is judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitgate.history.saved import SavedRun
from bitgate.history.schema import Record
from bitgate.history.store import differing
from bitgate.metric import plural

#: runs that a speed is predicted from, and how few will do
HISTORY, LEAST_HISTORY = 8, 5


@dataclass(frozen=True)
class Past:
    """The latest earlier speeds of a case that was executed alike on the same hardware.

    `logs` are logarithms, `processes` says of how many processes each is the mean.
    """

    logs: Sequence[float] = ()
    processes: Sequence[int] = ()
    #: why others do not count, and how many
    left_out: Mapping[str, int] | None = None

    @property
    def enough(self) -> bool:
        return len(self.logs) >= LEAST_HISTORY

    @property
    def lack(self) -> str:
        """`3 earlier runs, 5 are needed (2 left out: threads 2 then, 1 now)`."""
        found = (
            f"{len(self.logs)} earlier {plural('run', len(self.logs))}, {LEAST_HISTORY} are needed"
        )
        others = [f"{count} left out: {why}" for why, count in (self.left_out or {}).items()]
        return f"{found} ({'; '.join(others)})" if others else found


def past(history: Sequence[SavedRun], now: Record, metric: str = "speedup") -> Past:
    """The last `HISTORY` of the runs, newest first, that say something of `now`."""
    logs: list[float] = []
    processes: list[int] = []
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
                break
        else:
            for why in whys[:1]:
                left_out[why] = left_out.get(why, 0) + 1
    return Past(logs, processes, left_out)


def _unusable(then: Record, now: Record, metric: str) -> str:
    value = then.metrics[metric].value
    if not (math.isfinite(value) and value > 0):
        return f"{metric} {value}"
    return ", ".join(differing(then, now, timed=True))
