"""Pulling batches from a measurement until every rule is decided, or there are no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bitgate.gates.looks import look_level
from bitgate.gates.rules import Rule
from bitgate.gates.verdict import Verdict, judge, unruled
from bitgate.measure.measurement import Batch, Measurement
from bitgate.metric import Metric
from bitgate.statistics import TooFewError

if TYPE_CHECKING:
    import numpy as np

#: a look at the intervals costs some error, so observations grow by this factor between two
GROWTH = 1.25

Stopped = Literal["decided", "not finite", "no rules", "exhausted", "out of time"]


@dataclass(frozen=True)
class Decision:
    """What was measured and what follows from it.

    `items` holds the observations, column by column, each of shape (n,). `note` says so if the
    measurement ended before it had the observations that it needs; else it is empty.
    """

    metrics: list[Metric]
    verdicts: list[Verdict]
    items: dict[str, np.ndarray]
    looks: int
    batches: int
    stopped: Stopped
    note: str = ""


def decide(
    measurement: Measurement,
    rules: Mapping[str, Rule],
    *,
    alpha: float = 0.02,
    deadline: Callable[[], bool] = lambda: False,
    on_batch: Callable[[Batch], None] | None = None,
    gate_modelled: bool = False,
) -> Decision:
    """Measure until every rule is decided, the batches end, or `deadline()` says time is up.

    `rules` maps metrics to the rules for them. The intervals of all looks together cover with
    1 - `alpha` (bitgate/gates/looks.py). The first look is at `measurement.least` observations,
    whatever the time; the next ones each time these have grown by a quarter. Verdicts are those of
    the latest look, so that they always fit the metrics recorded. Without rules there is one look
    and no more. A rule for what turns out to be modelled and not measured is passed over, unless
    `gate_modelled`.

    `deadline` is asked after each batch, which `on_batch` is given as it arrives.

    Raises:
        ValueError: if the columns of a batch differ in length, or from those of earlier batches,
            or if there are more observations than the measurement announced.
    """
    trial = _Trial(measurement, rules, alpha, gate_modelled)
    batches = measurement.batches()
    try:
        stopped = _pull(trial, batches, deadline, on_batch)
    finally:
        close = getattr(batches, "close", None)  # an Iterator need not be a generator
        if close is not None:
            close()
    return Decision(
        trial.metrics,
        trial.verdicts,
        trial.seen.items(),
        len(trial.looks),
        trial.seen.batches,
        stopped,
        trial.note,
    )


def _pull(
    trial: _Trial,
    batches: Iterator[Batch],
    deadline: Callable[[], bool],
    on_batch: Callable[[Batch], None] | None,
) -> Stopped:
    """Pull batches, look when it is due, and say why no more are pulled."""
    for batch in batches:
        trial.seen.add(batch)
        if on_batch is not None:
            on_batch(batch)
        last = deadline() or not trial.rules
        if trial.seen.count < (trial.measurement.least if last else trial.due):
            continue
        trial.look(last=last)
        why = trial.over
        if why is not None or last:
            return why or "out of time"
    trial.look(last=True)
    return "exhausted"


@dataclass
class _Seen:
    """The observations so far."""

    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    count: int = 0
    batches: int = 0

    def add(self, batch: Batch) -> None:
        import numpy as np

        self.batches += 1
        if not batch.items:
            return
        lengths = {name: len(values) for name, values in batch.items.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of one batch differ in length: {lengths}")
        if not self.columns:
            self.columns = {name: [] for name in batch.items}
        if self.columns.keys() != batch.items.keys():
            raise ValueError(f"columns {sorted(batch.items)} after {sorted(self.columns)}")
        for name, values in batch.items.items():
            self.columns[name].append(np.asarray(values))
        self.count += next(iter(lengths.values()))

    def items(self) -> dict[str, np.ndarray]:
        import numpy as np

        return {name: np.concatenate(parts) for name, parts in self.columns.items()}


@dataclass
class _Trial:
    """The observations so far, and what the latest look at them gave."""

    measurement: Measurement
    rules: Mapping[str, Rule]
    alpha: float
    gate_modelled: bool = False
    seen: _Seen = field(default_factory=_Seen)
    looks: list[int] = field(default_factory=list)  # observations at each
    due: float = field(init=False)  # observations that the next look waits for
    metrics: list[Metric] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.due = self.measurement.least

    @property
    def note(self) -> str:
        count, least = self.seen.count, self.measurement.least
        return f"only {count} of the {least} observations it needs" if count < least else ""

    def look(self, *, last: bool) -> None:
        """Compute the metrics of all observations so far and judge them."""
        # The end may come without anything new: then the latest look becomes the last one, and
        # spends the rest. Its interval lies within the one seen before, so no error is added.
        if self.looks[-1:] != [self.seen.count]:
            self.looks.append(self.seen.count)
        self.due = max(self.seen.count * GROWTH, self.seen.count + 1)
        most = getattr(self.measurement, "most", None)  # which it need not know
        level = look_level(tuple(self.looks), self.alpha, most=most, last=last)
        self.metrics = self._measured(level)
        measured = {metric.name: metric for metric in self.metrics}
        self.verdicts = [
            judge(measured.get(name), rule, self.note)
            for name, rule in self.rules.items()
            if self.gate_modelled or not (name in measured and measured[name].modelled)
        ]
        others = [unruled(metric) for metric in self.metrics if metric.name not in self.rules]
        self.verdicts += [verdict for verdict in others if verdict is not None]

    def _measured(self, level: float) -> list[Metric]:
        """The metrics; none where the measurement ended with too few observations for any."""
        if self.seen.count == 0 < self.measurement.least:
            return []
        try:
            return self.measurement.metrics(self.seen.items(), level, 1 - self.alpha)
        except TooFewError:
            if not self.note:
                raise  # `least` promised that there are enough
            return []

    @property
    def over(self) -> Stopped | None:
        """Why no more batches are needed, if so."""
        if not self.rules:
            return "no rules"
        if any(not metric.finite for metric in self.metrics if metric.name in self.rules):
            return "not finite"  # no further batch can mend that
        if all(verdict.outcome != "inconclusive" for verdict in self.verdicts):
            return "decided"
        return None
