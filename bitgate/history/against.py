"""A whole run against earlier ones: every case, every reference, one correction for all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, islice

from bitgate.gates.tolerances import Tolerance
from bitgate.gates.verdict import Verdict
from bitgate.history.change import Change, judged
from bitgate.history.compare import compare
from bitgate.history.past import pasts
from bitgate.history.record import Result
from bitgate.history.saved import RunError, SavedRun, Side
from bitgate.history.schema import Record
from bitgate.history.store import ACCEPTED, Reference
from bitgate.statistics import Outcome

OUTCOMES: dict[str, Outcome] = {
    "regression": "fail",
    "missing": "inconclusive",
    "not comparable": "inconclusive",
    "no history yet": "inconclusive",
    "inconclusive": "inconclusive",
    "better": "pass",
    "unchanged": "pass",
}


@dataclass(frozen=True)
class Comparison:
    """All cases of a run beside one reference."""

    reference: Reference
    changes: Sequence[Change]

    @property
    def gate(self) -> str:
        """As verdicts call it."""
        return f"against {self.reference.asked}"

    @cached_property
    def _by_case(self) -> dict[str, list[Change]]:
        found: dict[str, list[Change]] = {}
        for change in self.changes:
            found.setdefault(change.case, []).append(change)
        return found

    def verdicts(self, case: str) -> list[Verdict]:
        """What is said of a case; metrics without a comparison for one reason share it."""
        found = [c for c in self._by_case.get(case, ()) if c.verdict != "recorded"]
        out = []
        for _, group in groupby(found, key=_sentence):
            same = list(group)
            metric = ", ".join(change.metric for change in same if change.metric)
            text = same[0].text if len(same) == 1 else f"{metric} {same[0].verdict}: {same[0].why}"
            outcome = OUTCOMES[same[0].verdict]
            out.append(Verdict(metric, outcome, self.gate, f"{text} [{self.gate}]"))
        return out


def _sentence(change: Change) -> tuple[str, ...]:
    """What two changes share if one verdict can say both."""
    if change.verdict in ("missing", "not comparable"):
        return change.verdict, change.why
    return change.verdict, change.why, change.metric


def side_of(result: Result, run: str = "") -> Side:
    """What this run has measured, as if it had been saved."""
    return Side(Record.model_validate(result.record()), run, result.items)


def against(
    sides: Mapping[str, Side],
    references: Sequence[Reference],
    tolerances: Mapping[str, Tolerance],
) -> list[Comparison]:
    """Each case of a run, by its key, beside each reference.

    What was accepted is compared with directly; of other references a speed is predicted from the
    history that led to them.
    """
    found = [
        [
            change
            for case, now in sides.items()
            for change in _beside(case, now, reference, tolerances)
        ]
        for reference in references
    ]
    done = iter(judged(list(chain.from_iterable(found))))
    return [
        Comparison(reference, list(islice(done, len(changes))))
        for reference, changes in zip(references, found, strict=True)
    ]


def _beside(
    case: str, now: Side, reference: Reference, tolerances: Mapping[str, Tolerance]
) -> list[Change]:
    try:
        then = reference.find(case, now.record)
    except RunError as error:
        return [Change(case, verdict="not comparable", why=str(error))]
    if then is None:
        return [Change(case, verdict="no history yet", why=f"{reference.title} does not have it")]
    earlier = pasts(reference.before(case), now.record)
    return compare(then, now, tolerances, earlier, predict=reference.asked != ACCEPTED)


def side_by_side(
    a: Reference,
    b: Reference,
    tolerances: Mapping[str, Tolerance],
    wanted: Callable[[str], bool] = lambda case: True,
) -> list[Change]:
    """Every case of either reference, as it was in `a` and is in `b`.

    Speeds are compared with each other; the runs before both, if there are enough, say how much
    they vary. A case that `b` failed to measure, and `a` has, is a regression.
    """
    cases = dict.fromkeys([*a.cases, *b.cases, *a.failed, *b.failed])
    found = [change for case in cases if wanted(case) for change in _both(case, a, b, tolerances)]
    return judged(found)


def _both(
    case: str, a: Reference, b: Reference, tolerances: Mapping[str, Tolerance]
) -> list[Change]:
    try:
        then = a.find(case)
        now = b.find(case, then.record if then else None)
        then = a.find(case, now.record if now else None)
    except RunError as error:
        return [Change(case, verdict="not comparable", why=str(error))]
    if now is None:
        failed = b.failed.get(case)
        why = f"not in B ({b.title})" if failed is None else f"B failed to measure it: {failed}"
        return [Change(case, verdict="regression" if then and failed else "missing", why=why)]
    if then is None:
        return [Change(case, verdict="missing", why=f"not in A ({a.failed.get(case, a.title)})")]
    history = _before(case, a, then, b, now)
    return compare(then, now, tolerances, pasts(history, now.record))


def _before(case: str, a: Reference, then: Side, b: Reference, now: Side) -> list[SavedRun]:
    """The history that was there before either side was measured: none is judged by a spread that
    it is part of."""
    measured = [
        run
        for reference, side in ((a, then), (b, now))
        for run in reference.runs
        if run.name == side.run and case in run.records
    ]
    start = min(run.when for run in measured)
    return [run for run in b.before(case) if run.when < start]
