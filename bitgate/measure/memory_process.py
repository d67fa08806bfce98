"""A process that loads a model, quantizes and serves it, and gives it batches, to see how much
memory each of these takes. Nothing else ever was in it, so that nothing hides a peak.

    python -m bitgate.measure.memory_process JOB.json RESULT.json
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypedDict

from pydantic import Field

from bitgate.catalog import Entry, Execution, Model
from bitgate.measure.fresh import end_with_its_starter
from bitgate.measure.inputs import Inputs, answer
from bitgate.measure.measurement import UnavailableError
from bitgate.quantize.letting_go import trim

if TYPE_CHECKING:
    import torch

    from bitgate.kernels.served import Served
    from bitgate.sources import LoadedModel

LOAD, QUANTIZE = "load", "quantize"


class Job(Entry):
    """What to do: with a `recipe`, as JSON, quantize the model; without, serve it as it is.

    `inputs` is a safetensors file in which NAME/KEY is the tensor KEY of the batch NAME; of these
    `names` are evaluated in this order, the smallest first.
    """

    model: Model
    method: str
    recipe: str | None
    execution: Execution
    inputs: Path = Field(strict=False)
    names: tuple[str, ...] = Field(strict=False)


class Seen(TypedDict):
    """What it saw, in bytes over what the process had `before` it loaded anything."""

    unavailable: str  #: why nothing could be seen; else empty
    how: str
    before: int
    base: int  #: all tensors of the base
    peaks: dict[str, int]  #: of `load`, `quantize`, and each batch by its name
    device: dict[str, int]  #: of an accelerator, by batch: all that was in use
    seconds: dict[str, float]  #: by batch


def run(job: Job) -> Seen:
    """Load, quantize, evaluate; the peak of each."""
    import torch

    from bitgate.kernels.served import TorchServed, tensor_bytes
    from bitgate.measure.peak_memory import device_in_use, meter
    from bitgate.sources import load_model, set_progress

    set_progress(lambda report: None)
    torch.set_num_threads(job.execution.threads)
    device, dtype = job.execution.device, getattr(torch, job.execution.dtype)
    seen = Seen(unavailable="", how="", before=0, base=0, peaks={}, device={}, seconds={})
    try:
        memory = meter(device)
    except UnavailableError as error:
        return {**seen, "unavailable": str(error)}
    _import_all(job)
    _tidy()
    before = memory.now()
    memory.start()
    loaded = load_model(job.model, device=device, dtype=dtype)
    peaks = {LOAD: memory.peak()}
    base = tensor_bytes(loaded.module)
    served: Served
    if job.recipe is None:
        served = TorchServed(loaded.module, job.execution)
    else:
        memory.start()
        served = _quantized(job, loaded, dtype)
        peaks[QUANTIZE] = memory.peak()
    del loaded
    _tidy()
    devices, seconds = dict[str, int](), dict[str, float]()
    for name in job.names:
        inputs = _read(job.inputs, name)
        memory.start()
        start = perf_counter()
        answer(served, inputs)
        peaks[name] = memory.peak()
        seconds[name] = perf_counter() - start
        if (in_use := device_in_use(device)) is not None:
            devices[name] = in_use
        del inputs
        _tidy()
    return Seen(
        unavailable="",
        how=memory.how,
        before=before,
        base=base,
        peaks={name: peak - before for name, peak in peaks.items()},
        device=devices,
        seconds=seconds,
    )


def _quantized(job: Job, loaded: LoadedModel, dtype: torch.dtype) -> Served:
    """Served, with nothing left of what it was made of: the base is used up."""
    from bitgate.quantize import method

    how = method(job.method)
    recipe = how.RECIPE.model_validate_json(job.recipe or "")
    return how.quantize(replace(loaded, expendable=True), recipe, dtype).serve(job.execution)


def _tidy() -> None:
    """What one phase has freed shall not count in the next."""
    gc.collect()
    trim()


def _import_all(job: Job) -> None:
    """The code that loading and quantizing need is no part of what they take."""
    from bitgate.quantize import warm
    from bitgate.sources import fetch_config
    from bitgate.sources.architecture import skeleton

    skeleton(fetch_config(job.model), job.model.task)
    if job.recipe is not None:
        warm(job.method)


def _read(path: Path, name: str) -> Inputs:
    """Those of one batch, in memory of their own: images are large, and those of the others shall
    not count."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        keys = [key for key in file.keys() if key.rpartition("/")[0] == name]  # noqa: SIM118
        return {key.rpartition("/")[2]: file.get_tensor(key).clone() for key in keys}


def main(arguments: list[str]) -> int:
    job, result = map(Path, arguments)
    end_with_its_starter()
    seen = run(Job.model_validate_json(job.read_text("utf-8")))
    result.write_text(json.dumps(seen), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
