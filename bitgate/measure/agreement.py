"""Two models that answered the same items, right or wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bitgate import statistics
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def accuracies(
    correct: ArrayLike, base_correct: ArrayLike, level: float, nominal: float
) -> list[Metric]:
    """Accuracy of both by Wilson's interval, their difference by Tango's score interval, and
    McNemar's exact p-value; 1 where an item was answered right, else 0, both of shape (n,), n > 0.

    McNemar, Psychometrika 12, 1947, 153-157; the exact test is a two-sided sign test over the items
    that only one of the two answered right.
    """
    import numpy as np

    own, base = np.asarray(correct, float), np.asarray(base_correct, float)
    count = len(own)

    def alone(name: str, values: NDArray[np.float64]) -> Metric:
        share = float(np.mean(values))
        low, high = (
            statistics.wilson(share, count, level) if math.isfinite(share) else (math.nan, math.nan)
        )
        return Metric(name, share, Interval(low, high, nominal, "Wilson", "item", count))

    found = [alone("accuracy", own), alone("base_accuracy", base)]
    if not np.isfinite(own - base).all():
        interval = Interval(math.nan, math.nan, nominal, "Tango's score", "item", count)
        return [*found, Metric("accuracy_difference", math.nan, interval)]
    gained, lost = int((own > base).sum()), int((own < base).sum())
    e = statistics.paired_difference(gained, lost, count, level)
    interval = Interval(e.low, e.high, nominal, e.method, "item", e.n)
    return [
        *found,
        Metric("accuracy_difference", e.value, interval),
        Metric("mcnemar_p", mcnemar(gained, lost)),
    ]


def over_majority(
    base_correct: ArrayLike, labels: ArrayLike, level: float, nominal: float
) -> Metric:
    """How much better the base is than always answering the commonest label, paired by item, by
    Tango's score interval; both of shape (n,), n > 0.

    A base that has learned nothing loses nothing by quantization either. The commonest label is
    that of these very items, which is never less often right than the one of all items.
    """
    import numpy as np

    base, truth = np.asarray(base_correct, float), np.asarray(labels, int)
    always = truth == np.bincount(truth).argmax()
    count = len(base)
    if not np.isfinite(base).all():
        unknown = Interval(math.nan, math.nan, nominal, "Tango's score", "item", count)
        return Metric("base_over_majority", math.nan, unknown)
    gained, lost = int((base > always).sum()), int((base < always).sum())
    e = statistics.paired_difference(gained, lost, count, level)
    interval = Interval(e.low, e.high, nominal, e.method, "item", e.n)
    return Metric("base_over_majority", e.value, interval)


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value; 1 where no item tells the two apart."""
    from scipy import stats

    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)
