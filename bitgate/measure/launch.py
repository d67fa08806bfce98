"""One launch: a fresh process that loads a saved cell and its base, times both, and writes down
what it saw. Whoever started it (`bitgate.measure.launches`) decides when it may time.

    python -m bitgate.measure.launch JOB.json RESULT.json

It prints `ready` when everything is loaded and warm, waits for `go` on its input, and ends when
that input does: nobody is left who would want the result.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypedDict

from pydantic import Field

from bitgate.catalog import Entry, Execution, Model, PhaseWorkload

READY, GO = b"ready\n", b"go\n"
ABANDONED = 3  #: exit status where whoever started this is gone


class Job(Entry):
    """What to load and what to time: `pairs` pairs of the workload's steps."""

    model: Model
    method: str
    quantized: Path = Field(strict=False, description="what `Quantized.save` wrote")
    execution: Execution
    workload: PhaseWorkload
    pairs: int


class Seen(TypedDict):
    """What a launch writes: the columns of its observations, and which layers were packed."""

    items: dict[str, list[Any]]
    packed_layers: int
    expected_layers: int
    layer_classes: str


def run(job: Job, alone: Callable[[], AbstractContextManager[None]]) -> Seen:
    """Load, warm up, and, within `alone`, time."""
    import torch

    from bitgate.kernels.served import TorchServed
    from bitgate.measure.packing import packed_layers
    from bitgate.measure.speed import paired_steps
    from bitgate.quantize import method
    from bitgate.sources import load_model, set_progress

    set_progress(lambda report: None)
    torch.set_num_threads(job.execution.threads)
    device, dtype = job.execution.device, getattr(torch, job.execution.dtype)
    loaded = load_model(job.model, device=device, dtype=dtype)
    base = TorchServed(loaded.module, replace(job.execution, kernel="torch"))
    quantized = method(job.method).load(job.quantized, device).serve(job.execution)
    packed = packed_layers(quantized)
    measurement = paired_steps(quantized, base, job.workload, alone, job.pairs)
    items: dict[str, list[Any]] = {}
    for batch in measurement.batches():
        for name, values in batch.items.items():
            items.setdefault(name, []).extend(values)
    return Seen(
        items=items,
        packed_layers=quantized.packed_layers,
        expected_layers=quantized.expected_layers,
        layer_classes=packed.by,
    )


def main(arguments: list[str]) -> int:
    job_file, result_file = map(Path, arguments)
    alone = _asking()
    seen = run(Job.model_validate_json(job_file.read_text("utf-8")), alone)
    result_file.write_text(json.dumps(seen), "utf-8")
    return 0


def _asking() -> Callable[[], AbstractContextManager[None]]:
    """Inside of what this returns, whoever started this process keeps others quiet."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    may_time = Event()
    Thread(target=_listen, args=(may_time,), daemon=True).start()

    @contextmanager
    def alone() -> Iterator[None]:
        os.write(answers, READY)
        may_time.wait()
        yield

    return alone


def _listen(may_time: Event) -> None:
    """By raw reads: a thread that waits inside a buffered one stops the interpreter from ending."""
    while heard := os.read(0, len(GO)):
        if heard == GO:
            may_time.set()
    os._exit(ABANDONED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
