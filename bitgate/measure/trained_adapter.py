"""An adapter that is trained once, by a process of its own, and kept under a key of all that made
it: the weights, how they were quantized and calibrated with which text, the text to train on, the
settings, the versions."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.catalog import Execution, FinetuneWorkload, Recipe
from bitgate.measure.fresh import at_most, ended, last_words, started
from bitgate.measure.launches import PATIENCE
from bitgate.measure.measurement import MeasureError
from bitgate.measure.training import RECORD, STEP, Job, Record, Settings
from bitgate.quantize import method
from bitgate.sources import (
    LoadedModel,
    SourceError,
    Windows,
    load_documents,
    once,
    track,
    windows,
)

if TYPE_CHECKING:
    import subprocess

    from bitgate.quantize import Quantized

AREA = "adapters"
FORMAT = 1  #: raise it when the same key would give another adapter
COMMAND = (sys.executable, "-m", "bitgate.measure.training")
#: packages whose version may change what training gives, beside those of the method
INVOLVED = ("torch", "transformers", "peft")


class TrainingError(MeasureError):
    """Training has failed; the message says how it ended, and its last words."""


@dataclass(frozen=True)
class TrainedAdapter:
    """Where the adapter lies, and how it was trained."""

    folder: Path
    key: tuple[str, ...]
    record: Record


def trained_adapter(
    start: Callable[[], Quantized],
    model: LoadedModel,
    recipe: Recipe,
    text: Windows,
    workload: FinetuneWorkload,
    execution: Execution,
) -> TrainedAdapter:
    """The adapter that `workload` asks for, trained on what `start` gives, if it has not been.

    `start` gives `model` quantized by `recipe`; `text` are the windows to train on. One that was
    trained with other threads has other step times, so it counts as another one.

    Raises:
        SourceError: if the text has too few windows.
        TrainingError: if training fails.
    """
    if len(text) < workload.windows:
        raise SourceError(
            f"finetune {workload.name}: training: dataset {workload.training.name} has "
            f"{len(text)} windows of {text.tokens.shape[1]} tokens, and {workload.steps} steps of "
            f"{workload.batch} read {workload.windows}: lower `steps`, `batch` or the dataset's "
            "`window`, or choose a longer text"
        )
    label = f"finetune {workload.name}"
    settings = Settings(**{key: getattr(workload, key) for key in Settings.model_fields})
    tokens = text.tokens[: workload.windows]
    extra = method(recipe.method).EXTRA
    key = (
        str(FORMAT),
        model.fingerprint,
        recipe.model_dump_json(),
        *_calibrated_with(model, recipe),
        text.fingerprint,
        settings.model_dump_json(),
        execution.device.split(":")[0],
        execution.dtype,
        str(execution.threads),
        *(f"{name} {version(name)}" for name in (*INVOLVED, *(extra.modules if extra else ()))),
    )

    def build(folder: Path) -> None:
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="bitgate-training-") as name:
            inside = Path(name)
            quantized = start()
            quantized.save(inside / "model.safetensors")
            save_file({"tokens": tokens.contiguous()}, inside / "tokens.safetensors")
            job = Job(
                method=quantized.recipe.method,
                quantized=inside / "model.safetensors",
                tokens=inside / "tokens.safetensors",
                device=execution.device,
                threads=execution.threads,
                settings=settings,
            )
            _run(job, inside, folder, label)

    folder = once(AREA, *key, build=build, label=label)
    record: Record = json.loads((folder / RECORD).read_text("utf-8"))
    return TrainedAdapter(folder, key, record)


def _calibrated_with(model: LoadedModel, recipe: Recipe) -> list[str]:
    """What the recipe's texts hold now: the recipe says only where they lie. Without a tokenizer
    none can be read, as whoever quantizes says."""
    if model.tokenizer is None:
        return []
    return [
        windows(text, model.tokenizer, load_documents(text)).fingerprint
        for text in recipe.calibration_texts()
    ]


def _run(job: Job, inside: Path, folder: Path, label: str) -> None:
    """Wait for the process that trains; a step that takes longer than PATIENCE is stuck."""
    job_file, said = inside / "job.json", inside / "said.txt"
    job_file.write_text(job.model_dump_json(), "utf-8")
    late: list[bool] = []
    with (
        said.open("wb") as stderr,
        track(f"{label}: train", job.settings.steps, "steps") as task,
        started([*COMMAND, str(job_file), str(folder)], stderr) as process,
    ):
        while True:
            with at_most(PATIENCE, process) as late:
                line = _line(process)
            if not line:
                break
            if line.startswith(STEP):
                task.update(int(line.removeprefix(STEP)))
        with at_most(PATIENCE, process):
            status = process.wait()
    if status or not (folder / RECORD).is_file():
        how = f"was stopped: a step took over {PATIENCE:.0f} s" if late else ended(status)
        raise TrainingError(f"{label}: training {how}{last_words(said)}")


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode()
