"""What quantizing costs and yields: time, bytes on disk and in memory, and a file that gives the
same logits back."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from bitgate.catalog import Execution, Recipe
from bitgate.kernels.served import Served, tensor_bytes
from bitgate.measure.measurement import Batch
from bitgate.measure.packing import packed_layers
from bitgate.measure.processes import ASSUMED
from bitgate.measure.speed import timed
from bitgate.metric import Interval, Metric
from bitgate.quantize import Quantized, method, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitgate.measure.measurement import Items

MIB = 2**20
PROBE = 32  #: tokens that are run through the model before it is saved and after it is loaded


def quantization(
    base: nn.Module,
    recipe: Recipe,
    execution: Execution,
    keep: Callable[[Quantized], Served],
) -> Quantization:
    """Quantize `base` once; `keep` is given the result, for whoever measures it next, and
    returns it served."""
    return Quantization(base, recipe, execution, keep)


class Quantization:
    """One observation: the one time that the model is quantized."""

    least = 1

    def __init__(
        self,
        base: nn.Module,
        recipe: Recipe,
        execution: Execution,
        keep: Callable[[Quantized], Served],
    ) -> None:
        self.base = base
        self.recipe = recipe
        self.execution = execution
        self.keep = keep
        self.exact: list[Metric] = []

    def batches(self) -> Iterator[Batch]:
        how = method(self.recipe.method)
        made: list[Quantized] = []
        dtype: torch.dtype = next(self.base.parameters()).dtype
        seconds, cpu = timed(lambda: made.append(how.quantize(self.base, self.recipe, dtype)))
        quantized = made.pop()
        served = self.keep(quantized)
        predicted = how.predicted_bytes(
            shapes_of(self.base), self.recipe, served.execution.kernel, dtype.itemsize
        )
        disk, difference = self._reload(quantized, served)
        self.exact = [
            Metric("size_mib", disk / MIB, expected=predicted.disk / MIB),
            Metric("memory_mib", served.memory_bytes() / MIB, expected=predicted.memory / MIB),
            Metric("base_size_mib", tensor_bytes(self.base) / MIB),
            Metric("reload_difference", difference),
            packed_layers(served),
        ]
        yield Batch([seconds], {"seconds": [seconds], "cpu_seconds": [cpu]})

    def _reload(self, quantized: Quantized, served: Served) -> tuple[int, float]:
        """Bytes of the saved file, and the largest difference of the logits that it gives."""
        import torch

        tokens = torch.arange(PROBE)[None].to(next(self.base.parameters()).device)
        with tempfile.TemporaryDirectory(prefix="bitgate-") as folder:
            path = Path(folder) / "model.safetensors"
            quantized.save(path)
            size = path.stat().st_size
            loaded = method(self.recipe.method).load(path, self.execution.device)
            again = loaded.serve(served.execution).logits(tokens)
            # NaN here is a finding, not a zero: NaN != NaN keeps it
            return size, float((again - served.logits(tokens)).abs().max())

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        seconds = float(items["seconds"][0])
        spread = ASSUMED.seconds.deviation
        factor = math.exp(NormalDist().inv_cdf((1 + level) / 2) * spread)
        how = f"one time, widened by {spread:.0%} between processes".replace("%", " %")
        interval = Interval(seconds / factor, seconds * factor, nominal, how, "process", 1)
        return [Metric("quantize_seconds", seconds, interval), *self.exact]
