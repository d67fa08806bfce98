"""The same items, answered then and now, right or wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bitgate.history.evidence import Evidence
from bitgate.history.saved import Items
from bitgate.history.shared import Shared, taken

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

#: items that both runs must have
LEAST_ITEMS = 16
#: how large a share of the base's own answers may differ before it is another base: where two
#: classes are all but equally likely, another machine's rounding decides
SAME_BASE = 0.02
#: what says which item it is, by the kind of case, and what must be as it was
KEYS, GIVEN = {"accuracy": "number", "task": "id"}, ("label",)

#: metrics that are means over items: the columns that make them up, and the sign of each
PAIRED: dict[str, dict[str, int]] = {
    "accuracy": {"correct": 1},
    "accuracy_difference": {"correct": 1, "base_correct": -1},
    "top1_agreement": {"same": 1},
}


class ItemPairs(Shared):
    """The items that both sides have."""

    paired = PAIRED
    observed = "an item"

    def _evidence(self, changes: NDArray[np.float64], now: Items) -> Evidence:
        return changed_share(changes, f"sign test over {len(changes)} paired items")

    def _pair(self) -> tuple[Items, Items] | str:
        import numpy as np

        key = KEYS[self.now.record.kind]
        if lacking := self._lacking(key):
            return lacking
        then, now = self.then.items, self.now.items
        _, at_then, at_now = np.intersect1d(then[key], now[key], return_indices=True)
        if len(at_now) < LEAST_ITEMS:
            return f"{len(at_now)} items were answered in both, {LEAST_ITEMS} are needed"
        shared = taken(then, at_then), taken(now, at_now)
        for name in GIVEN:
            if (
                name in then
                and name in now
                and not np.array_equal(shared[0][name], shared[1][name])
            ):
                self._another = f"other items: those of one number differ in {name}"
                return self._another
        for name in ("base_predicted", "base_correct"):
            if name in then and name in now:
                apart = float(np.mean(shared[0][name] != shared[1][name]))
                if apart > SAME_BASE:
                    self._another = (
                        f"other items or another base: {100 * apart:.2g} % of the base's own "
                        "answers differ"
                    )
                    return self._another
        return shared


def changed_share(differences: ArrayLike, method: str) -> Evidence:
    """The mean of differences of shape (n,), most of which are 0 and few above or below.

    With few that changed the plain standard error is too small. It is taken so large that the
    chance of no change at all is that of the exact sign test, which for items that are right or
    wrong is McNemar's (Psychometrika 12, 1947, 153-157). Where nothing changed, nothing is
    uncertain.
    """
    import numpy as np
    from scipy import stats

    d = np.asarray(differences, float)
    n, mean, squares = len(d), float(d.mean()), float((d**2).sum())
    error = math.sqrt(max(squares - n * mean**2, 0.0) / (n - 1) / n)
    changed, more = int((d != 0).sum()), int(max((d > 0).sum(), (d < 0).sum()))
    chance = float(stats.binom.sf(more - 1, changed, 0.5)) if changed else 1.0
    if mean and chance < 0.5:
        error = max(error, abs(mean) / float(stats.norm.isf(chance)))
    return Evidence(mean, error, math.inf, method)
