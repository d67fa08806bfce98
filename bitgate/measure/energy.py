"""Energy and emissions of quantizing a model and of evaluating it, beside the base's.

Each is one stretch of work under one tracker. What a figure is of, an instrument or a model with
which constants, stands beside it; modelled figures are shown and pass no gate
(docs/workloads/energy.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import NormalDist
from typing import TYPE_CHECKING

from bitgate.catalog import EnergyWorkload
from bitgate.kernels.served import Served
from bitgate.measure.energy_meter import JOULES_PER_KWH, EnergyMeter, Used
from bitgate.measure.inputs import Inputs, answer, tokens_in
from bitgate.measure.measurement import Batch
from bitgate.measure.processes import ASSUMED
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    from bitgate.measure.measurement import Items


def evaluating(
    meter: EnergyMeter,
    served: Served,
    batches: Sequence[Inputs],
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Used:
    """What it takes to give a model all `batches`, within `alone`; one has been given before."""
    first = {name: tensor[:1] for name, tensor in batches[0].items()}
    answer(served, first)  # what happens only once is no part of it

    def evaluate() -> None:
        for inputs in batches:
            answer(served, inputs)

    with alone():
        return meter.measure(evaluate)


def energy(
    workload: EnergyWorkload,
    batches: Sequence[Inputs],
    quantizing: Callable[[], Used],
    base: Callable[[], Used],
    quantized: Callable[[], Used],
) -> Energy:
    """What quantizing took, and evaluating `batches` with either model, from what is known or is
    measured when asked for, in this order."""
    return Energy(workload, batches, quantizing, base, quantized)


class Energy:
    """One observation: kWh, kg CO2eq and seconds of each."""

    least = 1

    def __init__(
        self,
        workload: EnergyWorkload,
        batches: Sequence[Inputs],
        quantizing: Callable[[], Used],
        base: Callable[[], Used],
        quantized: Callable[[], Used],
    ) -> None:
        self.workload = workload
        self.tokens = tokens_in(batches)
        self._measure = {"quantize": quantizing, "base_evaluate": base, "evaluate": quantized}
        self._used: dict[str, Used] = {}

    def batches(self) -> Iterator[Batch]:
        self._used = {name: measure() for name, measure in self._measure.items()}
        columns = {
            f"{name}_{key}": [getattr(used, key)]
            for name, used in self._used.items()
            for key in ("kwh", "kg_co2eq", "seconds")
        }
        yield Batch([self._used["evaluate"].seconds], columns)

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        sigmas = NormalDist().inv_cdf((1 + level) / 2)

        def metric(name: str, value: float, of: str, deviation: float, shown: bool) -> Metric:
            factor = math.exp(sigmas * deviation)
            how = f"one time, widened by {100 * deviation:.2g} % between processes"
            interval = Interval(value / factor, value * factor, nominal, how, "process", 1)
            used = self._used[of]
            if not shown:
                return Metric(name, value, interval)
            return Metric(name, value, interval, by=used.source, modelled=used.modelled)

        spread = ASSUMED.seconds.deviation
        found = []
        for of in self._used:
            found += [
                metric(f"{of}_kwh", float(items[f"{of}_kwh"][0]), of, spread, True),
                metric(f"{of}_kg_co2eq", float(items[f"{of}_kg_co2eq"][0]), of, spread, True),
                metric(f"{of}_seconds", float(items[f"{of}_seconds"][0]), of, spread, False),
            ]
        kwh, base = float(items["evaluate_kwh"][0]), float(items["base_evaluate_kwh"][0])
        joules = kwh * JOULES_PER_KWH
        if self.tokens is not None:
            found.append(metric("joules_per_token", joules / self.tokens, "evaluate", spread, True))
        else:
            found.append(
                metric("joules_per_item", joules / self.workload.items, "evaluate", spread, True)
            )
        # not in turn with the base, so what disturbs the one need not disturb the other
        apart = math.sqrt(2) * spread
        found.append(metric("energy_ratio", kwh / base, "evaluate", apart, True))
        return found
