"""What fine-tuning gains on its domain, and how much of that is left of it when it is deployed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bitgate import statistics
from bitgate.kernels.served import Served
from bitgate.measure.measurement import Batch
from bitgate.measure.packing import packed_layers
from bitgate.measure.perplexity import LEAST_WINDOWS, spans
from bitgate.measure.processes import ASSUMED, over_processes
from bitgate.measure.speed import timed
from bitgate.measure.tuned import Tuned, window_nll
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    import numpy as np

    from bitgate.measure.measurement import Items
    from bitgate.sources import Windows

#: the states that are scored, and the metric that says how well each predicts
PERPLEXITIES = {
    "base": "base_perplexity",
    "tuned": "tuned_perplexity",
    "merged": "merged_perplexity",
    "untuned": "untuned_perplexity",
    "deployed": "deployed_perplexity",
}
STATES = (*PERPLEXITIES, "start")
STEP, WINDOW = "step", "window"
#: two steps and twenty gave peaks that differ by this: docs/workloads/finetune.md
PEAK_SPREAD = 0.02


class PeakWarning(UserWarning):
    """The peak memory of training is not known; the message says why."""


def kept_gains(tuned: Tuned, quantized: Served, text: Windows) -> KeptGains:
    """Score `text` with the model in each state; `quantized` is untuned."""
    return KeptGains(tuned, quantized, text)


class KeptGains:
    """Two kinds of observations, told apart by `part`: of each training step its loss and its time,
    and of each window the negative log-likelihoods, nats, summed over its `tokens`, of every state:
    `base`, `start` (what the adapter was trained on), `tuned`, `merged`, `untuned` (quantized by
    the recipe) and `deployed`. What a part has not is NaN.

    A gain is a difference of two log-perplexities, as in log(before) - log(after), so gains of
    windows add up; all are over the same windows.
    """

    def __init__(self, tuned: Tuned, quantized: Served, text: Windows) -> None:
        self.tuned = tuned
        self.quantized = quantized
        self.text = text
        steps = tuned.workload.steps
        self.least = steps + min(len(text), LEAST_WINDOWS)
        self.most = steps + len(text)

    def batches(self) -> Iterator[Batch]:
        record = self.tuned.record
        yield Batch([], self._rows(STEP, loss=record["losses"], seconds=record["seconds"]))
        tokens = self.text.tokens.shape[1] - self.text.scored
        for start, stop in spans(self.text):
            kept = self.tuned.scores(self.text, start, stop)
            untuned = window_nll(self.quantized, self.text, start, stop)
            out: list[list[float]] = []
            deployed = self.tuned.deployed
            seconds, _ = timed(lambda: out.append(window_nll(deployed, self.text, start, stop)))  # noqa: B023
            columns = {**kept, "untuned": untuned, "deployed": out.pop()}
            yield Batch(
                [seconds],
                self._rows(
                    WINDOW,
                    first=start,
                    document=self.text.document[start:stop].tolist(),
                    tokens=tokens[start:stop].tolist(),
                    **{f"{name}_nll": values for name, values in columns.items()},
                ),
            )

    @staticmethod
    def _rows(part: str, *, first: int = 0, **columns: list[Any]) -> dict[str, Any]:
        """All columns that there are, of which a part fills some."""
        count = len(next(iter(columns.values())))
        names = ("document", "tokens", "loss", "seconds", *(f"{name}_nll" for name in STATES))
        return {
            "part": [part] * count,
            "number": list(range(first, first + count)),
            **{name: [float(x) for x in columns.get(name, [math.nan] * count)] for name in names},
        }

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        steps = items["part"] == STEP
        of = {name: values[~steps] for name, values in items.items()}
        tokens = of["tokens"]
        # per token, one value of each window, whose plain mean is the mean over all tokens
        nll = {name: statistics.linearized(of[f"{name}_nll"], tokens) for name in STATES}

        def over_windows(name: str, e: statistics.Estimate) -> Metric:
            return Metric(name, e.value, Interval(e.low, e.high, nominal, e.method, "window", e.n))

        def share(name: str, gained: np.ndarray) -> Metric:
            return over_windows(name, statistics.ratio_of_means(gained, gain, level))

        gain = nll["start"] - nll["tuned"]
        ratio = statistics.skewed_t(nll["deployed"] - nll["base"], level).exp()
        found = [
            over_windows("training_gain", statistics.skewed_t(gain, level)),
            share("gain_kept", nll["start"] - nll["merged"]),
            share("deployed_gain", nll["untuned"] - nll["deployed"]),
            over_windows("deployed_ratio", ratio),
            *(
                over_windows(name, statistics.skewed_t(nll[state], level, unseen=1.0).exp())
                for state, name in PERPLEXITIES.items()
            ),
        ]
        found.append(self._step_seconds(items["seconds"][steps], level, nominal))
        found += self._peak(nominal)
        return [*found, packed_layers(self.tuned.deployed)]

    @staticmethod
    def _step_seconds(seconds: np.ndarray, level: float, nominal: float) -> Metric:
        import numpy as np

        logs = np.log(seconds[1:])  # the first step also sets up what all of them use
        e = over_processes(logs, np.zeros(len(logs), int), ASSUMED.seconds, level).exp()
        interval = Interval(e.low, e.high, nominal, e.method, "process", e.n)
        return Metric("step_seconds", e.value, interval)

    def _peak(self, nominal: float) -> list[Metric]:
        record = self.tuned.record
        peak = record["peak_mib"]
        if peak is None:
            why = f"training_peak_mib is not available: {record['no_peak']}"
            warnings.warn(PeakWarning(why), stacklevel=2)
            return []
        how = f"one time, widened by {PEAK_SPREAD:.0%} between processes".replace("%", " %")
        low, high = peak * (1 - PEAK_SPREAD), peak * (1 + PEAK_SPREAD)
        interval = Interval(low, high, nominal, how, "process", 1)
        return [Metric("training_peak_mib", peak, interval)]
