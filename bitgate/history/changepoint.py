"""Where a series of values changes its level, and how sure that is.

ruptures proposes, a test from scipy's distributions disposes: docs/drift.md has the detections and
false alarms by which this was chosen, `tools/choose_drift.py` measures them again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

#: values that a level needs: fewer are an outlier as likely as a level
LEAST = 3


class ChangePoint(NamedTuple):
    """The level is another one from value number `at` (from 0) on, until the next change.

    `p` is how often values that keep their level would look like this anywhere between the
    neighbouring changes.
    """

    at: int
    p: float


def change_points(values: ArrayLike, alpha: float) -> list[ChangePoint]:
    """The changes of level in finite values of shape (n,), each with p <= `alpha`, in order.

    1. Candidates: the least sum of squares about the levels plus 2 s² log n for every change
       (PELT: Killick, Fearnhead and Eckley, JASA 107, 2012, 1590-1598; the penalty of Yao,
       Statistics & Probability Letters 6, 1988, 181-189), each level at least `LEAST` values long.
       s is robust: from the median absolute difference of neighbours.
    2. Each candidate is tested between its neighbours: Student's t of the two levels, times the
       number of places where the change could have been (Bonferroni's bound on the largest of them;
       Worsley, JASA 74, 1979, 365-367).
    3. While the weakest has p > `alpha` it is dropped and those beside it are tested again, over
       what are now longer levels (Fleming et al., Hunter, ICPE 2023).

    Values are taken as independent: where neighbours are alike, as times on a shared machine are,
    there are more false alarms.

    Fewer than 2 `LEAST` values have none.
    """
    import numpy as np

    x = np.asarray(values, dtype=float)
    if len(x) < 2 * LEAST:
        return []
    places = _candidates(x)
    while places:
        levels = [0, *places, len(x)]
        tested = [
            ChangePoint(at, _p(x[start:at], x[at:end]))
            for start, at, end in zip(levels, levels[1:], levels[2:], strict=False)
        ]
        weakest = max(tested, key=lambda point: point.p)
        if weakest.p <= alpha:
            return tested
        places.remove(weakest.at)
    return []


def _candidates(x: NDArray[np.float64]) -> list[int]:
    import numpy as np
    import ruptures

    # of a normal distribution, whose differences have √2 times its deviation
    deviation = float(np.median(np.abs(np.diff(x)))) / 0.6745 / math.sqrt(2)
    scale = deviation or float(x.std())
    if scale == 0:
        return []
    # standardized: whatever the unit, its penalty is far from rounding errors
    signal = ((x - np.median(x)) / scale).reshape(-1, 1)
    # the linear kernel is the sum of squares; unlike ruptures' Pelt it is compiled
    search = ruptures.KernelCPD(kernel="linear", min_size=LEAST).fit(signal)
    ends = search.predict(pen=2 * math.log(len(x)))
    return [int(end) for end in ends[:-1]]  # the last is the series' own


def _p(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    from scipy.special import stdtr

    n = len(before) + len(after)
    gap = abs(float(before.mean() - after.mean()))
    residual = float(((before - before.mean()) ** 2).sum() + ((after - after.mean()) ** 2).sum())
    error = math.sqrt(residual / (n - 2) * (1 / len(before) + 1 / len(after)))
    if error == 0:
        return 0.0 if gap else 1.0
    return min(1.0, 2 * float(stdtr(n - 2, -gap / error)) * (n - 2 * LEAST + 1))
