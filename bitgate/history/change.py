"""A change of one metric between then and now, and the verdicts on all changes together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from bitgate.gates.tolerances import Scale
from bitgate.history.evidence import Evidence, holm
from bitgate.history.schema import Value
from bitgate.metric import number

Verdict = Literal[
    "regression",
    "missing",
    "not comparable",
    "no history yet",
    "inconclusive",
    "better",
    "unchanged",
    "recorded",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
#: the chance that any of the comparisons of a run in which nothing changed is red
ALPHA = 0.02
LEVEL = 1 - ALPHA

#: how much slower a speed must surely not be to count as unchanged, as a logarithm: half as much
#: time more. Where history varies so that this would not be seen, nothing can be said
BLIND = math.log(1.5)

#: speeds, which vary between processes: by the wall clock, and by that of the CPU
TIMED = ("speedup", "cpu_speedup")


@dataclass(frozen=True)
class Change:
    """One metric of a case then and now; without a metric it is about the whole case.

    `evidence` is on a logarithmic scale where `scale` is `ratio`. `p` is one-sided, for a change
    for the worse by more than `tolerance`, with Holm's correction over all that was compared.
    """

    case: str
    metric: str = ""
    verdict: Verdict = "recorded"
    #: how it was compared, or why it was not
    why: str = ""
    then: Value | None = None
    now: Value | None = None
    #: the run of `then`
    run: str = ""
    scale: Scale = "ratio"
    tolerance: float = 0.0
    evidence: Evidence | None = None
    p: float | None = None
    #: whether the evidence leads to a verdict, or is only shown
    judge: bool = False

    @property
    def timed(self) -> bool:
        return self.metric in TIMED

    @property
    def lower_is_better(self) -> bool:
        value = self.now or self.then
        return value is not None and value.better == "lower"

    @property
    def change(self) -> float | None:
        """Relative to then, or in the metric's unit: by `scale`."""
        return None if self.evidence is None else self._shown(self.evidence.change)

    @property
    def interval(self) -> tuple[float, float] | None:
        """98 %, of this comparison alone; None of what is exact."""
        if self.evidence is None or self.evidence.certain:
            return None
        low, high = self.evidence.interval(LEVEL)
        return self._shown(low), self._shown(high)

    def _shown(self, x: float) -> float:
        return relative(x) if self.scale == "ratio" else x

    @property
    def for_the_worse(self) -> Evidence | None:
        """The evidence, turned so that more is worse."""
        if self.evidence is None or self.lower_is_better:
            return self.evidence
        return self.evidence.reversed()

    @property
    def allowed(self) -> float:
        """The tolerance on the scale of `for_the_worse`."""
        if self.scale == "difference":
            return self.tolerance
        if self.lower_is_better:
            return math.log1p(self.tolerance)
        return -math.log1p(-self.tolerance) if self.tolerance < 1 else math.inf

    @property
    def text(self) -> str:
        """A sentence with all numbers: what a failure says."""
        change, interval = self.change, self.interval
        if change is None or self.now is None:
            said = self.why if self.verdict == "regression" else f"{self.verdict}: {self.why}"
            return f"{self.metric} {said}".strip()
        word = "better than" if (change < 0) == self.lower_is_better else "worse than"
        how = f"{amount(abs(change), self.scale)} {word}" if change else "the same as"
        was = _then(self)
        within = (
            f"{100 * LEVEL:g} % interval of the change {signed(interval[0], self.scale)} to "
            f"{signed(interval[1], self.scale)}, "
            if interval
            else ""
        )
        p = "" if self.p is None else f", p {number(self.p, 2)} by Holm over all comparisons"
        return (
            f"{self.metric} {number(self.now.value)} is {how} {was} ({within}{self.why}; "
            f"up to {amount(self.tolerance, self.scale)} is no change{p})"
        )


def _then(change: Change) -> str:
    value = number(change.then.value) if change.then is not None else "then"
    return f"{value} in {change.run}" if change.run else f"{value} expected from history"


def relative(logarithm: float) -> float:
    """A ratio minus 1."""
    return math.expm1(logarithm) if logarithm < 700 else math.inf


def amount(x: float, scale: Scale) -> str:
    """`1.3 %`, or `0.0021`."""
    return f"{number(100 * x, 3)} %" if scale == "ratio" else number(x, 3)


def signed(x: float, scale: Scale) -> str:
    return ("+" if x >= 0 else "-") + amount(abs(x), scale)


# --- all of a run together -----------------------------------------------------------------


def judged(changes: Sequence[Change], alpha: float = ALPHA) -> list[Change]:
    """The verdicts, so that with nothing changed at most `alpha` of runs have any regression.

    Holm's correction is over all comparisons in which there was any noise; what was computed twice
    with the same result to the last bit cannot be a false alarm, and costs the others nothing.
    """
    uncertain = [
        (at, evidence.p_above(change.allowed))
        for at, change in enumerate(changes)
        if change.judge and (evidence := change.for_the_worse) is not None and not evidence.certain
    ]
    adjusted = dict(zip((at for at, _ in uncertain), holm([p for _, p in uncertain]), strict=True))
    return [
        replace(change, p=adjusted.get(at), verdict=_verdict(change, adjusted.get(at), alpha))
        if change.judge
        else change
        for at, change in enumerate(changes)
    ]


def _verdict(change: Change, p: float | None, alpha: float) -> Verdict:
    evidence = change.for_the_worse
    assert evidence is not None
    if (evidence.p_above(change.allowed) if p is None else p) <= alpha:
        return "regression"
    if evidence.reversed().p_above(change.allowed) <= alpha / 2:
        return "better"
    # a score must surely be no worse; a speed is unchanged if it is what history predicts, and that
    # is something
    limit = max(BLIND, change.allowed) if change.timed else change.allowed
    if evidence.interval(1 - alpha)[1] <= limit:
        return "unchanged"
    return "inconclusive"


def regressions(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.verdict == "regression"]
