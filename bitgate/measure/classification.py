"""To which class the quantized model says that texts or images belong, beside the base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from bitgate import statistics
from bitgate.catalog import AccuracyWorkload
from bitgate.catalog.workloads import LEAST_TIMES
from bitgate.kernels.served import TorchServed
from bitgate.measure.agreement import accuracies, over_majority
from bitgate.measure.f1 import JACKKNIFE, macro_f1
from bitgate.measure.measurement import Batch
from bitgate.measure.packing import packed_layers
from bitgate.measure.processes import ASSUMED, over_processes
from bitgate.measure.speed import timed
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from bitgate.measure.measurement import Items
    from bitgate.sources import EncodedItems


class Base(Protocol):
    """The base: its answers come from a cache, or from itself."""

    def classes(self, items: EncodedItems, start: int, stop: int) -> Tensor:
        """Logits of items `start` to `stop`, [stop - start, classes]."""
        ...

    def classify(self, inputs: Any) -> Tensor:
        """Logits [items, classes]."""
        ...


def paired_predictions(
    quantized: TorchServed, base: Base, items: EncodedItems, workload: AccuracyWorkload
) -> PairedPredictions:
    """Classify `items` with both models, as many at a time as the workload says."""
    return PairedPredictions(quantized, base, items, workload)


class PairedPredictions:
    """One observation per item: the class that each model says, and, if they have labels, `label`,
    `correct` and `base_correct`; what a batch took is shared by its items. Fewer than 6 batches
    have no times."""

    def __init__(
        self, quantized: TorchServed, base: Base, items: EncodedItems, workload: AccuracyWorkload
    ) -> None:
        self.quantized = quantized
        self.base = base
        self.items = items
        self.workload = workload
        self.least = min(workload.least, len(items))
        self.most = len(items) if workload.items is None else self.least

    def batches(self) -> Iterator[Batch]:
        batch = self.workload.batch
        for number, start in enumerate(range(0, self.most, batch)):
            stop = min(start + batch, self.most)
            inputs = self.items.inputs(start, stop)
            asked = {"own": self.quantized, "base": self.base}
            if not self.workload.timed:
                del asked["base"]
            seconds: dict[str, float] = {}
            said: dict[str, Tensor] = {}

            def ask(name: str, model: Any, inputs: Any = inputs, said: Any = said) -> None:
                said[name] = model.classify(inputs)

            # in turn: own base, base own, so that what drifts drifts for both
            for name in sorted(asked, reverse=number % 2 == 0):
                seconds[name], _ = timed(partial(ask, name, asked[name]))
            if "base" not in said:
                said["base"] = self.base.classes(self.items, start, stop)
            columns = self._compare(said["own"], said["base"], start, stop)
            share = {
                name: [total / (stop - start)] * (stop - start) for name, total in seconds.items()
            }
            columns["seconds"] = share["own"]
            if "base" in share:
                columns["base_seconds"] = share["base"]
            yield Batch([seconds["own"]], columns)

    def _compare(self, logits: Tensor, base: Tensor, start: int, stop: int) -> dict[str, Any]:
        finite, base_finite = (x.isfinite().all(-1).tolist() for x in (logits, base))
        said, base_said = logits.argmax(-1).tolist(), base.argmax(-1).tolist()
        columns: dict[str, Any] = {
            "number": list(self.items.items.numbers[start:stop]),
            "predicted": said,
            "base_predicted": base_said,
            "same": [
                _equal(one, other, known and base_known)
                for one, other, known, base_known in zip(
                    said, base_said, finite, base_finite, strict=True
                )
            ],
        }
        if (labels := self.items.items.labels) is not None:
            truth = columns["label"] = list(labels[start:stop])
            columns["correct"] = list(map(_equal, said, truth, finite))
            columns["base_correct"] = list(map(_equal, base_said, truth, base_finite))
        return columns

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        import numpy as np

        count = len(items["same"])
        share = float(np.mean(items["same"]))
        low, high = (
            statistics.wilson(share, count, level) if math.isfinite(share) else (math.nan, math.nan)
        )
        found = [
            Metric("top1_agreement", share, Interval(low, high, nominal, "Wilson", "item", count))
        ]
        if "label" in items:
            found += accuracies(items["correct"], items["base_correct"], level, nominal)
            found.append(over_majority(items["base_correct"], items["label"], level, nominal))
            if math.isfinite(share):
                found += macro_f1(
                    items["label"], items["predicted"], items["base_predicted"], level, nominal
                )
            else:
                unknown = Interval(math.nan, math.nan, nominal, JACKKNIFE, "item", count)
                names = ("macro_f1", "macro_f1_difference")
                found += [Metric(name, math.nan, unknown) for name in names]
        return [*found, *self._times(items, level, nominal), packed_layers(self.quantized)]

    def _times(self, items: Items, level: float, nominal: float) -> list[Metric]:
        import numpy as np

        def metric(name: str, logs: Any, between: Any) -> Metric:
            e = over_processes(logs, np.zeros(len(logs), int), between, level).exp()
            return Metric(name, e.value, Interval(e.low, e.high, nominal, e.method, "process", e.n))

        # a batch is one observation of time, whatever its items
        own = np.asarray(items["seconds"])[:: self.workload.batch]
        if len(own) < LEAST_TIMES:
            return []
        found = [metric("items_per_second", -np.log(own), ASSUMED.seconds)]
        if "base_seconds" in items:
            base = np.asarray(items["base_seconds"])[:: self.workload.batch]
            found.append(metric("evaluation_speedup", np.log(base / own), ASSUMED.ratio))
        return found


def _equal(said: int, other: int, known: bool) -> float:
    """1 or 0; NaN where a model said NaN, whose likeliest class is the first and may be right."""
    return float(said == other) if known else math.nan
