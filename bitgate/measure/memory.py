"""Peaks of memory beside the base's, each model in a process of its own.

The process of the quantized model loads the base, uses it up while it quantizes it, and is then
given one batch of each size, the smallest first; that of the base the same without quantizing.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from bitgate.catalog import Cell, Execution, MemoryWorkload, Model
from bitgate.measure import fresh
from bitgate.measure.inputs import Inputs
from bitgate.measure.measurement import Batch, MeasureError, UnavailableError
from bitgate.measure.memory_process import LOAD, QUANTIZE, Job, Seen
from bitgate.metric import Interval, Metric
from bitgate.sources import track

if TYPE_CHECKING:
    from bitgate.measure.measurement import Items

MIB = 2**20
PATIENCE = 1800.0  #: seconds after which a process is stuck
COMMAND = (sys.executable, "-m", "bitgate.measure.memory_process")
#: the standard deviation of a peak between processes, as a share of it: docs/workloads/memory.md
DEVIATION = 0.06


def watched(
    model: Model,
    cell: Cell | None,
    execution: Execution,
    batches: Mapping[str, Inputs],
    label: str,
) -> Seen:
    """What a process of its own saw while it gave `batches`, the smallest first, to the cell's
    model, or without a cell to `model` as it is.

    Raises:
        UnavailableError: if this machine cannot tell.
        MeasureError: if the process failed, with its last words.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="bitgate-memory-") as folder, track(label):
        names = ("job.json", "result.json", "said.txt", "inputs.safetensors")
        job, result, said, inputs = (Path(folder) / name for name in names)
        named = {f"{name}/{key}": t for name, batch in batches.items() for key, t in batch.items()}
        save_file({key: tensor.contiguous() for key, tensor in named.items()}, inputs)
        wanted = Job(
            model=model,
            method="" if cell is None else cell.recipe.method,
            recipe=None if cell is None else cell.recipe.model_dump_json(exclude_defaults=True),
            execution=execution,
            inputs=inputs,
            names=tuple(batches),
        )
        job.write_text(wanted.model_dump_json(), "utf-8")
        command = [*COMMAND, str(job), str(result)]
        with (
            said.open("wb") as stderr,
            fresh.started(command, stderr) as process,
            fresh.at_most(PATIENCE, process) as late,
        ):
            status = process.wait()
        if status or not result.is_file():
            how = f"was stopped after {PATIENCE:.0f} s" if late else fresh.ended(status)
            raise MeasureError(f"{label}: its process {how}{fresh.last_words(said)}")
        seen: Seen = json.loads(result.read_text("utf-8"))
    if seen["unavailable"]:
        raise UnavailableError(f"unavailable: {seen['unavailable']}")
    return seen


def peaks(
    workload: MemoryWorkload, quantized: Callable[[], Seen], base: Callable[[], Seen]
) -> PeakMemory:
    """The peaks of the workload's batch, from what the two processes saw, or see when asked."""
    return PeakMemory(workload, quantized, base)


class PeakMemory:
    """One observation: bytes at the peak of each phase, over what the process had before."""

    least = 1

    def __init__(
        self, workload: MemoryWorkload, quantized: Callable[[], Seen], base: Callable[[], Seen]
    ) -> None:
        self.workload = workload
        self._quantized = quantized
        self._base = base
        self._how = ""

    def batches(self) -> Iterator[Batch]:
        name = self.workload.name
        own, base = self._quantized(), self._base()
        over = "" if not own["before"] else f", over {own['before'] / MIB:.0f} MiB"
        self._how = f"{own['how']}{over}"
        columns = {
            "load": own["peaks"][LOAD],
            "quantize": own["peaks"][QUANTIZE],
            "evaluate": own["peaks"][name],
            "base_evaluate": base["peaks"][name],
            "base_bytes": own["base"],
            **({"device": own["device"][name]} if name in own["device"] else {}),
        }
        yield Batch([own["seconds"][name]], {key: [value] for key, value in columns.items()})

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        factor = math.exp(NormalDist().inv_cdf((1 + level) / 2) * DEVIATION)

        def metric(name: str, value: float) -> Metric:
            how = f"one process, widened by {100 * DEVIATION:g} % between processes"
            interval = Interval(value / factor, value * factor, nominal, how, "process", 1)
            return Metric(name, value, interval, by=self._how)

        load, quantize, evaluate, base, size = (
            float(items[key][0])
            for key in ("load", "quantize", "evaluate", "base_evaluate", "base_bytes")
        )
        found = [
            metric("peak_load_mib", load / MIB),
            metric("peak_quantize_mib", quantize / MIB),
            metric("peak_quantize_ratio", max(load, quantize) / size),
            metric("peak_evaluate_mib", evaluate / MIB),
            metric("base_peak_evaluate_mib", base / MIB),
            metric("peak_evaluate_ratio", evaluate / base),  # the base's differ less, and alike
        ]
        if "device" in items:
            found.append(metric("device_peak_mib", float(items["device"][0]) / MIB))
        return found
