"""What quantizing costs and yields: time, bytes on disk and in memory, how far each layer's weights
are from the base's, and a file that gives the same logits back."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from bitgate.catalog import Execution, Recipe
from bitgate.kernels.served import Served, probe, tensor_bytes
from bitgate.measure.measurement import Batch
from bitgate.measure.packing import packed_layers
from bitgate.measure.processes import ASSUMED
from bitgate.measure.speed import timed
from bitgate.measure.weights import weight_errors
from bitgate.metric import Interval, Metric
from bitgate.quantize import Quantized, method, shapes_of

if TYPE_CHECKING:
    import torch

    from bitgate.measure.measurement import Items
    from bitgate.sources import LoadedModel

MIB = 2**20


def quantization(
    model: LoadedModel,
    recipe: Recipe,
    execution: Execution,
    keep: Callable[[Quantized], Served],
) -> Quantization:
    """Quantize `model` once; `keep` is given the result, for whoever measures it next, and
    returns it served."""
    return Quantization(model, recipe, execution, keep)


class Quantization:
    """The one time that the model is quantized; an observation is what it made of a layer."""

    least = 1

    def __init__(
        self,
        model: LoadedModel,
        recipe: Recipe,
        execution: Execution,
        keep: Callable[[Quantized], Served],
    ) -> None:
        self.model = model
        self.base = model.module
        self.recipe = recipe
        self.execution = execution
        self.keep = keep
        self.exact: list[Metric] = []

    def batches(self) -> Iterator[Batch]:
        how = method(self.recipe.method)
        made: list[Quantized] = []
        dtype: torch.dtype = next(self.base.parameters()).dtype
        seconds, cpu = timed(lambda: made.append(how.quantize(self.model, self.recipe, dtype)))
        quantized = made.pop()
        served = self.keep(quantized)
        predicted = how.predicted_bytes(
            shapes_of(self.base), self.recipe, served.execution.kernel, dtype.itemsize
        )
        disk, difference = self._reload(quantized, served)
        self.exact = [
            Metric(
                "size_mib", disk / MIB, expected=None if predicted is None else predicted.disk / MIB
            ),
            Metric(
                "memory_mib",
                served.memory_bytes() / MIB,
                expected=None if predicted is None else predicted.memory / MIB,
            ),
            Metric("base_size_mib", tensor_bytes(self.base) / MIB),
            Metric("reload_difference", difference),
            packed_layers(served),
        ]
        errors = weight_errors(self.base, quantized.weights())
        # NaN is the worst there is, which max() does not know
        worst = max(errors.values(), key=lambda error: (math.isnan(error), error))
        self.exact.append(Metric("weight_error", worst))
        rows = len(errors)
        yield Batch(
            [seconds],
            {
                "seconds": [seconds] * rows,
                "cpu_seconds": [cpu] * rows,
                "layer": list(errors),
                "weight_error": list(errors.values()),
            },
        )

    def _reload(self, quantized: Quantized, served: Served) -> tuple[int, float]:
        """Bytes of the saved file, and the largest difference of the logits that it gives."""
        with tempfile.TemporaryDirectory(prefix="bitgate-") as folder:
            path = Path(folder) / "model.safetensors"
            quantized.save(path)
            size = bytes_on_disk(path)
            loaded = method(self.recipe.method).load(path, self.execution.device)
            again = probe(loaded.serve(served.execution))
            # NaN here is a finding, not a zero: NaN != NaN keeps it
            return size, float((again - probe(served)).abs().max())

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        seconds = float(items["seconds"][0])
        spread = ASSUMED.seconds.deviation
        factor = math.exp(NormalDist().inv_cdf((1 + level) / 2) * spread)
        how = f"one time, widened by {spread:.0%} between processes".replace("%", " %")
        interval = Interval(seconds / factor, seconds * factor, nominal, how, "process", 1)
        return [Metric("quantize_seconds", seconds, interval), *self.exact]


def bytes_on_disk(path: Path) -> int:
    """Of a saved file; of a folder, its weights."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in WEIGHTS)


#: suffixes of files that hold weights
WEIGHTS = (".safetensors", ".bin", ".gguf")
