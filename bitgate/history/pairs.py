"""The same windows of text, scored then and now: what makes a comparison of quality paired."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bitgate.history.evidence import Evidence, paired
from bitgate.history.saved import Items, Side
from bitgate.metric import number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: windows that both runs must have scored
LEAST_WINDOWS = 16
#: how far the base's own scores of a window may differ before it is another text or another base;
#: bfloat16 instead of float32 changes a perplexity by 0.1 %
SAME_BASE = 0.02

#: metrics that are sums over windows: the columns that make them up, and the sign of each
PAIRED: dict[str, dict[str, int]] = {
    "perplexity": {"nll": 1},
    "perplexity_ratio": {"nll": 1, "base_nll": -1},
    "kl_divergence": {"kl": 1},
    "top1_agreement": {"same_top1": 1},
}


class Pairs:
    """The windows that both sides have scored."""

    def __init__(self, then: Side, now: Side) -> None:
        self.then = then
        self.now = now
        self._shared: tuple[Items, Items] | str | None = None

    def evidence(self, metric: str) -> Evidence | str:
        """The mean change per token, or why there is none."""
        import numpy as np

        if self._shared is None:
            self._shared = self._pair()
        if isinstance(self._shared, str):
            return self._shared
        then, now = self._shared
        total = np.zeros(len(now["tokens"]))
        for column, sign in PAIRED[metric].items():
            if column not in then or column not in now:
                return f"the scores have no column {column}"
            total += sign * (now[column] - then[column])
        if not np.isfinite(total).all():
            return "a window's score is not a finite number"
        # dividing by the mean makes the plain mean over windows the mean over tokens
        count = len(total)
        return paired(total / now["tokens"].mean(), f"Student t over {count} paired windows")

    def _pair(self) -> tuple[Items, Items] | str:
        import numpy as np

        needed = ("window", "document", "tokens", "base_nll")
        for side in (self.then, self.now):
            lacking = [name for name in needed if name not in side.items]
            if lacking:
                which = side.run or "this run"
                return f"the per-item scores of {which} are missing (its .parquet file)"
        then, now = self.then.items, self.now.items
        _, at_then, at_now = np.intersect1d(then["window"], now["window"], return_indices=True)
        shared = _taken(then, at_then), _taken(now, at_now)
        if len(at_now) < LEAST_WINDOWS:
            return f"{len(at_now)} windows were scored in both, {LEAST_WINDOWS} are needed"
        for name in ("document", "tokens"):
            if not np.array_equal(shared[0][name], shared[1][name]):
                return f"another text: windows of one number differ in {name}"
        bases = shared[0]["base_nll"], shared[1]["base_nll"]
        if not all(np.isfinite(base).all() for base in bases):
            return "the base's own scores are not finite"
        apart = float((np.abs(bases[1] - bases[0]) / np.maximum(np.abs(bases[0]), 1e-9)).max())
        if apart > SAME_BASE:
            was, is_ = (_perplexity(side) for side in shared)
            return (
                f"another text or base: the base's own scores differ by up to {100 * apart:.0f} % "
                f"a window (its perplexity was {number(was)}, now {number(is_)})"
            )
        return shared


def _taken(items: Items, at: NDArray[np.intp]) -> Items:
    import numpy as np

    return {name: np.asarray(values)[at] for name, values in items.items()}


def _perplexity(items: Items) -> float:
    import numpy as np

    nll = float(np.asarray(items["base_nll"]).sum() / np.asarray(items["tokens"]).sum())
    return math.exp(nll) if nll < 700 else math.inf
