"""How others decide that something became slower, on the same timings.

Each has a significance test, or none, and a least slowdown that a user may set:

- pytest-benchmark 5.3 (`--benchmark-compare-fail=mean:5%`): the mean, median or minimum of the
  rounds is more than so much above the other's; its help shows 5 %.
- asv 0.6 (`asv continuous`): the median is more than `--factor` (1.1) times the other's, and a
  two-sided Mann-Whitney test of all samples, exact up to 20 on a side, has p < 0.002.
- pyperf 2.10 (`compare_to`): a two-sided Student's t-test of all values, with a pooled variance, is
  significant at 5 %; the means differ by at least `--min-speed` (0 %).

Rounds, samples and values are here the timed steps of all launches. None of them looks at a base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from record import Array
from scipy import stats

Bools = NDArray[np.bool_]
EXACT = 20  #: samples up to which asv's p-value is exact
ASV_P, PYPERF_P = 0.002, 0.05


@dataclass(frozen=True)
class Rule:
    """`summary` of shape (trials, n) is (trials,); `significant` of two such is (trials,) too."""

    name: str
    summary: Callable[[Array], Array]
    significant: Callable[[Array, Array], Bools]
    usual: float  #: the least slowdown, as people have it: 0.05 is 5 %

    def red(self, old: Array, new: Array, least: float) -> Bools:
        """Whether each trial's new timings, shape (trials, n), count as slower than the old."""
        larger = self.summary(new) > self.summary(old) * (1 + least)
        return larger & self.significant(old, new)

    def tuned(self, old: Array, new: Array, alarms: float) -> float:
        """The least slowdown, 0 or more, with which at most such a share of unchanged trials is
        red."""
        ratio = self.summary(new) / self.summary(old) - 1
        ratio[~self.significant(old, new)] = -1
        return max(0.0, float(np.quantile(ratio, 1 - alarms, method="higher")))


def _always(old: Array, new: Array) -> Bools:
    return np.ones(len(old), bool)


def _mann_whitney(old: Array, new: Array) -> Bools:
    method = "exact" if max(old.shape[1], new.shape[1]) <= EXACT else "asymptotic"
    test = stats.mannwhitneyu(old, new, axis=1, method=method, use_continuity=False)
    return np.asarray(test.pvalue < ASV_P)


def _student(old: Array, new: Array) -> Bools:
    return np.asarray(stats.ttest_ind(old, new, axis=1).pvalue <= PYPERF_P)


mean, median, least = (partial(how, axis=1) for how in (np.mean, np.median, np.min))
RULES = (
    Rule("pytest-benchmark, mean", mean, _always, 0.05),
    Rule("pytest-benchmark, median", median, _always, 0.05),
    Rule("pytest-benchmark, min", least, _always, 0.05),
    Rule("asv", median, _mann_whitney, 0.10),
    Rule("pyperf", mean, _student, 0.0),
)
