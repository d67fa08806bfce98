"""Macro-F1: the mean over the classes of each one's F1, whatever its share of the items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitgate import statistics
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

JACKKNIFE = "Student t of the jackknife"


def macro_f1(
    labels: ArrayLike, predicted: ArrayLike, base: ArrayLike, level: float, nominal: float
) -> list[Metric]:
    """Macro-F1 of `predicted`, and its difference from that of `base`; all int of shape (n,),
    n >= 3.

    Over the classes that are anyone's label or answer. It is no mean over items, so the intervals
    are Student's over the jackknife's pseudo-values, n F - (n - 1) F without item i (Tukey, Annals
    of Mathematical Statistics 29, 1958, 614).
    """
    import numpy as np

    truth, own, other = (np.asarray(x, int) for x in (labels, predicted, base))
    found = []
    for name, answers in (("macro_f1", (own,)), ("macro_f1_difference", (own, other))):
        values = [_pseudo_values(truth, answer) for answer in answers]
        pseudo = values[0] if len(values) == 1 else values[0] - values[1]
        scores = [score(confusion(truth, answer)) for answer in answers]
        value = scores[0] - sum(scores[1:])
        e = statistics.student_t(pseudo, level)
        half = (e.high - e.low) / 2
        interval = Interval(value - half, value + half, nominal, JACKKNIFE, "item", e.n)
        found.append(Metric(name, value, interval))
    return found


def confusion(labels: NDArray[np.int_], predicted: NDArray[np.int_]) -> NDArray[np.int_]:
    """Counts by label (row) and answer (column)."""
    import numpy as np

    size = int(max(labels.max(), predicted.max())) + 1
    counts = np.zeros((size, size), int)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def score(counts: NDArray[np.int_]) -> float:
    """Macro-F1 from a confusion matrix: the mean of 2 TP / (2 TP + FP + FN)."""
    import numpy as np

    right = np.diag(counts)
    both = counts.sum(0) + counts.sum(1)
    there = both > 0
    return float((2 * right[there] / both[there]).mean())


def _pseudo_values(labels: NDArray[np.int_], predicted: NDArray[np.int_]) -> NDArray[np.float64]:
    """Items of one label and one answer have the same one, so each pair is computed once."""
    import numpy as np

    counts, n = confusion(labels, predicted), len(labels)
    whole = score(counts)
    out = np.empty(n)
    for label, answer in {*zip(labels.tolist(), predicted.tolist(), strict=True)}:
        counts[label, answer] -= 1
        without = score(counts)
        counts[label, answer] += 1
        out[(labels == label) & (predicted == answer)] = n * whole - (n - 1) * without
    return out
