"""Runs of launches as they followed each other, of which nothing changed: how many are red?

Runs that are drawn know nothing of what changes slowly on a machine; these do.
"""

from __future__ import annotations

import numpy as np
import suite
from record import Recorded

UNCHANGED = 100


def blocks(recorded: Recorded, n: int) -> list[suite.Drawn]:
    """Runs of `n` launches that followed each other, in order; no launch is in two."""
    return list(np.arange(len(recorded) // n * n).reshape(-1, n))


def adjacent(judge: suite.Judge, n: int) -> str:
    """Pairs of runs, near each other in time and far, none taken twice."""
    spread = judge.calibrated(np.arange(suite.CALIBRATED))
    runs = [judge.measured(block, spread) for block in blocks(judge.recorded, n)]
    pairs = [(i, j) for i in range(len(runs)) for j in range(i + 1, len(runs))]
    chosen = np.random.default_rng(0).permutation(len(pairs))[:UNCHANGED]
    red = sum(judge.compare(runs[pairs[at][0]], runs[pairs[at][1]]) for at in chosen)
    return f"{red} of {len(chosen)}"


def following(judge: suite.Judge, n: int) -> str:
    """One run, the eight before it and the one that measures again, each of launches that followed
    each other, taken in any order: too few were recorded for a hundred histories of their own."""
    rng = np.random.default_rng(0)
    spread = judge.calibrated(np.arange(suite.CALIBRATED))
    runs = [judge.measured(block, spread) for block in blocks(judge.recorded, n)]
    red = 0
    for _ in range(UNCHANGED):
        order = rng.permutation(len(runs)) if len(runs) >= suite.HISTORY + 2 else None
        if order is None:
            return f"{len(runs)} runs are too few"
        *before, now, again = (runs[at] for at in order[: suite.HISTORY + 2])
        red += judge.against(before, now, lambda again=again: again)
    return f"{red} of {UNCHANGED}"
