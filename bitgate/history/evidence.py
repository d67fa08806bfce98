"""How sure one is that something changed: estimates with their error, p-values, Holm's correction.

Each function takes plain numbers and knows nothing of runs or metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bitgate.statistics import TooFewError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Evidence:
    """An estimated change, now minus then, on a scale on which it is added: of logarithms, or of
    the metric itself.

    `error` is its standard error, by Student's t with `freedom` degrees of freedom (infinite: the
    normal distribution). `method` says where it comes from.
    """

    change: float
    error: float
    freedom: float
    method: str

    @property
    def certain(self) -> bool:
        """Whether no noise was seen at all, as where a computation was repeated exactly."""
        return self.error == 0

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided."""
        if self.certain:
            return self.change, self.change
        half = float(_t().isf((1 - level) / 2, self.freedom)) * self.error
        return self.change - half, self.change + half

    def p_above(self, bound: float) -> float:
        """One-sided p-value of the hypothesis that the change is not above `bound`."""
        if self.certain:
            return 0.0 if self.change > bound else 1.0
        return float(_t().sf((self.change - bound) / self.error, self.freedom))

    def reversed(self) -> Evidence:
        """Of the change in the other direction."""
        return Evidence(-self.change, self.error, self.freedom, self.method)


def paired(differences: ArrayLike, method: str) -> Evidence:
    """The mean of independent paired differences of shape (n,), by Student's t.

    Raises:
        TooFewError: for fewer than two.
    """
    import numpy as np

    d = np.asarray(differences, float)
    if len(d) < 2:
        raise TooFewError(f"{len(d)} pairs, at least 2 are needed")
    # equal differences have a deviation of rounding errors, not of zero
    deviation = 0.0 if np.ptp(d) <= 1e-12 * np.abs(d).max() else float(d.std(ddof=1))
    return Evidence(float(d.mean()), deviation / math.sqrt(len(d)), len(d) - 1, method)


def spread(values: ArrayLike, counts: ArrayLike | None = None) -> tuple[float, float, float]:
    """Mean, standard deviation of one process, and processes in all, of the k >= 2 earlier values.

    `values[i]` is the mean over `counts[i]` processes (1 by default), so its variance is that of
    one process over `counts[i]`, estimated by sum(counts (values - mean)²) / (k - 1) around the
    mean weighted by counts.

    Raises:
        TooFewError: for fewer than two values.
    """
    import numpy as np

    x = np.asarray(values, float)
    n = np.ones(len(x)) if counts is None else np.asarray(counts, float)
    if len(x) < 2:
        raise TooFewError(f"{len(x)} earlier values, at least 2 are needed")
    mean = float((n * x).sum() / n.sum())
    variance = float((n * (x - mean) ** 2).sum() / (len(x) - 1))
    return mean, math.sqrt(variance), float(n.sum())


class Variance(NamedTuple):
    """Of one process, and its degrees of freedom; without any, nothing is known."""

    value: float
    freedom: float


NOTHING = Variance(0, 0)
POOL = 0.25  #: the level of the test before two variances are pooled


def within(deviations: Sequence[float | None], counts: Sequence[float]) -> Variance:
    """What the processes of each of several runs say together: a run of `counts[i]` of them has
    `counts[i]` - 1 degrees of freedom, or none where its deviation is not known."""
    known = [(n - 1, d**2) for n, d in zip(counts, deviations, strict=True) if d is not None]
    freedom = sum(weight for weight, _ in known)
    if freedom <= 0:
        return NOTHING
    return Variance(sum(weight * value for weight, value in known) / freedom, freedom)


def pooled(runs: Variance, processes: Variance) -> Variance:
    """The variance of one process, from how runs differ and from how the processes in each do.

    Both say the same unless there is something that differs from run to run only (the hour, the
    room's temperature): then `runs` is the larger, and alone holds. An F test at 25 % decides, the
    level at which a t-test after it keeps its own (Bozivich, Bancroft and Hartley, Annals of
    Mathematical Statistics 27, 1956, 1017-1043).
    """
    from scipy import stats

    if not processes.freedom:
        return runs
    limit = float(stats.f.isf(POOL, runs.freedom, processes.freedom))
    if runs.value > limit * processes.value:
        return runs
    freedom = runs.freedom + processes.freedom
    value = (runs.freedom * runs.value + processes.freedom * processes.value) / freedom
    return Variance(value, freedom)


def predicted(
    value: float,
    processes: float,
    past: ArrayLike,
    counts: ArrayLike | None,
    method: str,
    inside: Variance = NOTHING,
) -> Evidence:
    """How far a value lies from what earlier ones of shape (k,) predict, by Student's t.

    `value - mean` has the standard error s sqrt(1 / processes + 1 / sum(counts)) with k - 1 degrees
    of freedom; with one process each this is the prediction interval mean ± t s sqrt(1 + 1/k) for
    one further observation (Hahn and Meeker, Statistical Intervals, 1991, section 4.7). What
    processes show `inside` of runs is pooled with s².

    Raises:
        TooFewError: for fewer than two earlier values.
    """
    mean, deviation, total = spread(past, counts)
    variance = pooled(Variance(deviation**2, _length(past) - 1), inside)
    error = math.sqrt(variance.value * (1 / processes + 1 / total))
    return Evidence(value - mean, error, variance.freedom, method)


#: degrees of freedom of what `bitgate calibrate` knows of its ten launches
CALIBRATED = 9


def apart(change: float, errors: tuple[float, float], method: str) -> Evidence:
    """The difference of two independent values whose standard errors `error_of` tells.

    Both may stem from one calibration, so the tail is Student's. With the errors of intervals that
    were made with Student's t as well, that is right for calibrations of 5 launches (at 24 speeds
    a run), and errs on the safe side for longer ones.
    """
    return Evidence(change, math.hypot(*errors), CALIBRATED, method)


def error_of(low: float, high: float, level: float) -> float:
    """The standard error behind a two-sided normal interval.

    Of an interval that was made with Student's t, or with several looks, it is more than that.
    """
    from scipy import stats

    return (high - low) / (2 * float(stats.norm.isf((1 - level) / 2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: all hypotheses with an adjusted p of at most alpha may be
    rejected together, and the chance that any of these was true is at most alpha, however the tests
    depend on each other (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70)."""
    count = len(p_values)
    adjusted = [1.0] * count
    largest = 0.0
    for rank, at in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def _length(values: ArrayLike) -> int:
    import numpy as np

    return len(np.asarray(values))


def _t() -> Any:
    from scipy import stats

    return stats.t
