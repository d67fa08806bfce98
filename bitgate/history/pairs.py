"""The same windows of text, scored then and now: what makes a comparison of quality paired."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bitgate.history.evidence import Evidence, paired
from bitgate.history.item_pairs import KEYS, ItemPairs
from bitgate.history.saved import Items, Side
from bitgate.history.shared import Shared, taken
from bitgate.metric import number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: windows that both runs must have scored
LEAST_WINDOWS = 16
#: how far the base's own scores of a window may differ before it is another text or another base;
#: bfloat16 instead of float32 changes a perplexity by 0.1 %
SAME_BASE = 0.02
#: of its score, or of so many nats a token: a few tokens that are nearly certain have next to none
LEAST_SCORE = 0.1

#: and how far, surely, its mean over all windows, in nats: 0.1 % of its perplexity
SAME_BASE_MEAN = 0.001
SURE = 0.98

#: metrics that are sums over windows: the columns that make them up, and the sign of each
PAIRED: dict[str, dict[str, int]] = {
    "perplexity": {"nll": 1},
    "perplexity_ratio": {"nll": 1, "base_nll": -1},
    "kl_divergence": {"kl": 1},
    "top1_agreement": {"same_top1": 1},
}


class Pairs(Shared):
    """The windows that both sides have scored."""

    paired = PAIRED
    observed = "a window"

    def _evidence(self, changes: NDArray[np.float64], now: Items) -> Evidence:
        # dividing by the mean makes the plain mean over windows the mean over tokens
        how = f"Student t over {len(changes)} paired windows"
        return paired(changes / now["tokens"].mean(), how)

    def _pair(self) -> tuple[Items, Items] | str:
        import numpy as np

        if lacking := self._lacking("window", "document", "tokens", "base_nll"):
            return lacking
        then, now = self.then.items, self.now.items
        _, at_then, at_now = np.intersect1d(then["window"], now["window"], return_indices=True)
        shared = taken(then, at_then), taken(now, at_now)
        if len(at_now) < LEAST_WINDOWS:
            return f"{len(at_now)} windows were scored in both, {LEAST_WINDOWS} are needed"
        for name in ("document", "tokens"):
            if not np.array_equal(shared[0][name], shared[1][name]):
                self._another = f"another text: windows of one number differ in {name}"
                return self._another
        bases = shared[0]["base_nll"], shared[1]["base_nll"]
        if not all(np.isfinite(base).all() for base in bases):
            return "the base's own scores are not finite"
        sizes = np.maximum(np.abs(bases[0]), LEAST_SCORE * shared[0]["tokens"])
        apart = float((np.abs(bases[1] - bases[0]) / sizes).max())
        if apart > SAME_BASE or self._has_moved(*bases, shared[1]["tokens"]):
            was, is_ = (_perplexity(side) for side in shared)
            self._another = (
                f"another text or base: the base's own scores differ by up to {100 * apart:.2g} % "
                f"a window (its perplexity was {number(was)}, now {number(is_)})"
            )
            return self._another
        return shared

    @staticmethod
    def _has_moved(then: NDArray[Any], now: NDArray[Any], tokens: NDArray[Any]) -> bool:
        low, high = paired((now - then) / tokens.mean(), "").interval(SURE)
        return low > SAME_BASE_MEAN or high < -SAME_BASE_MEAN


def pairs_of(then: Side, now: Side) -> Pairs | ItemPairs:
    """By what the observations of such cases are paired: windows, or items."""
    if now.record.kind in KEYS:
        return ItemPairs(then, now)
    return Pairs(then, now)


def _perplexity(items: Items) -> float:
    import numpy as np

    nll = float(np.asarray(items["base_nll"]).sum() / np.asarray(items["tokens"]).sum())
    return math.exp(nll) if nll < 700 else math.inf
