"""Speed over fresh processes: what differs from process to process (where its memory lies, what the
scheduler makes of it) is part of what is measured.

This process only orchestrates. The processes run one after another; each loads what it needs,
holds nothing but it, and is gone before the next one starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.catalog import Case, Execution, PhaseWorkload
from bitgate.measure import fresh
from bitgate.measure.launch import GO, READY, Job, Seen
from bitgate.measure.measurement import Batch, MeasureError
from bitgate.measure.processes import Spread
from bitgate.measure.speed import speeds
from bitgate.metric import Metric
from bitgate.quantize import method, shapes_of
from bitgate.sources import load_model, serving_dtype, track

if TYPE_CHECKING:
    from bitgate.measure.measurement import Items

PAIRS = 8  #: of each launch; more would say little, as steps agree better than processes do
MOST = 20  #: launches of a case that stays undecided
#: seconds for each of loading (compiling included) and timing, after which a launch is stuck
PATIENCE = 1200.0
GRACE = 5.0  #: seconds for ending
COMMAND = (sys.executable, "-m", "bitgate.measure.launch")


def prepared(case: Case, device: str, folder: Path, threads: int = 1) -> Job:
    """What launches of the phase of `case` need, its cell quantized and saved in `folder`; nothing
    of it stays in memory. `threads` is for a workload that does not say."""
    assert isinstance(case.workload, PhaseWorkload)
    model, recipe = case.cell.model, case.cell.recipe
    how, dtype, path = method(recipe.method), serving_dtype(device), folder / "model.safetensors"
    loaded = load_model(model, device=device, dtype=dtype)
    how.quantize(loaded, recipe, dtype).save(path)
    execution = Execution(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        threads=case.workload.threads or threads,
        kernel=how.kernel(shapes_of(loaded.module), recipe, device),
        compiled=case.workload.compiled,
    )
    return Job(
        model=model,
        method=recipe.method,
        quantized=path,
        execution=execution,
        workload=case.workload,
        pairs=PAIRS,
    )


class LaunchError(MeasureError):
    """A launch has failed; the message says how it ended, and its last words."""


class Launches:
    """One batch per launch: the pairs that it timed, with its number in the column `launch`."""

    def __init__(
        self,
        job: Job,
        launches: int,
        spread: Spread,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        limit: int = MOST,
        label: str = "speed",
    ) -> None:
        """At least `launches` launches and at most `limit`, each of which enters `alone` while it
        times; `label` is what messages call all this."""
        self.job = job
        self.launches = launches
        self.spread = spread
        self.alone = alone
        self.limit = max(limit, launches)
        self.label = label
        self.least = launches * job.pairs
        self.packed: list[Metric] = []

    def batches(self) -> Iterator[Batch]:
        self.packed = []
        with (
            tempfile.TemporaryDirectory(prefix="bitgate-launch-") as folder,
            track(self.label, self.launches, "launches") as task,
        ):
            for number in range(self.limit):
                seen = self._launch(number, Path(folder))
                task.update(number + 1, max(self.launches, number + 1))
                layers, expected = seen["packed_layers"], seen["expected_layers"]
                by = seen["layer_classes"]
                self.packed.append(Metric("packed_layers", layers, expected=expected, by=by))
                items = seen["items"]
                launch = [number] * len(items["seconds"])
                yield Batch(items["seconds"], {**items, "launch": launch})

    def _launch(self, number: int, folder: Path) -> Seen:
        job, result, said = (folder / name for name in ("job.json", "result.json", "said.txt"))
        job.write_text(self.job.model_dump_json(), "utf-8")
        result.unlink(missing_ok=True)
        command = [*COMMAND, str(job), str(result)]
        with said.open("wb") as stderr, fresh.started(command, stderr) as process:
            with fresh.at_most(PATIENCE, process) as late:
                ready = _hears(process, READY)
            if ready:
                with self.alone(), fresh.at_most(PATIENCE, process) as late:
                    _tell(process, GO)
                    process.wait()
            else:
                with fresh.at_most(GRACE, process):  # it is about to end, and how is worth knowing
                    process.wait()
            status = process.wait()
        if status or not result.is_file():
            how = f"was stopped after {PATIENCE:.0f} s" if late else fresh.ended(status)
            raise LaunchError(f"{self.label}: launch {number + 1} {how}{fresh.last_words(said)}")
        seen: Seen = json.loads(result.read_text("utf-8"))
        return seen

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        # should launches be served differently, the worst of them is what counts
        packed = min(self.packed, key=lambda metric: metric.value)
        job = self.job
        return speeds(items, job.workload, job.execution, self.spread, packed, level, nominal)


def _hears(process: subprocess.Popen[bytes], what: bytes) -> bool:
    """Whether the process says so before it ends."""
    assert process.stdout is not None
    return process.stdout.readline() == what


def _tell(process: subprocess.Popen[bytes], what: bytes) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it has just died, which its exit status tells
        process.stdin.write(what)
        process.stdin.flush()
