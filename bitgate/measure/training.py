"""Training an adapter, in a process of its own, so that its peak memory is that of training alone.

    python -m bitgate.measure.training JOB.json FOLDER

It loads the quantized model that the job names, trains, says `step N` after each step, and writes
into the folder the adapter as peft saves it, and `training.json`. It ends when its input does:
nobody is left who would want the result.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023): the weights stay
quantized, gradients go through them to the adapters of all quantized layers.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pydantic import Field

from bitgate.catalog import Entry
from bitgate.measure.launch import ABANDONED
from bitgate.measure.measurement import UnavailableError
from bitgate.measure.peak_memory import meter
from bitgate.measure.speed import timed

if TYPE_CHECKING:
    from torch import Tensor, nn

RECORD = "training.json"
STEP = "step "
ALPHA = 2  #: an adapter's `alpha` over its rank
MIB = 2**20


class Settings(Entry):
    """How an adapter is trained."""

    steps: int
    batch: int
    learning_rate: float
    rank: int
    seed: int


class Job(Entry):
    """What to train, on what: `tokens`, int64 [steps * batch, window], are read in their order."""

    method: str
    quantized: Path = Field(strict=False, description="what `Quantized.save` wrote")
    tokens: Path = Field(strict=False, description="safetensors with `tokens`")
    device: str
    threads: int
    settings: Settings


class Record(TypedDict):
    """What is known of a training, beside the adapter."""

    losses: list[float]  #: nats a token, before each step
    seconds: list[float]  #: of each step
    peak_mib: float | None  #: beyond what was taken before the model was loaded
    no_peak: str  #: why it is not known, if so


class DivergedError(ValueError):
    """The loss is no number any more."""


class Trained(NamedTuple):
    """A module with an adapter inside, as peft wraps it, and how it came there."""

    module: Any
    losses: list[float]
    seconds: list[float]


def train(
    module: nn.Module,
    layers: Sequence[str],
    tokens: Tensor,
    settings: Settings,
    tell: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train an adapter on the named layers of a causal language model, all of whose own weights
    stay as they are; `module` is changed in place.

    AdamW at a constant learning rate; the loss is the mean over the tokens of a step.

    Raises:
        DivergedError: once a loss is not finite.
    """
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    _announce(module)
    prepared = prepare_model_for_kbit_training(module, use_gradient_checkpointing=False)
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=ALPHA * settings.rank,
        target_modules=list(layers),
        task_type="CAUSAL_LM",
    )
    adapted: Any = get_peft_model(prepared, config).train()
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate)
    losses: list[float] = []
    seconds: list[float] = []

    def step(batch: Tensor) -> None:
        loss = adapted(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    for number in range(settings.steps):
        batch = tokens[number * settings.batch :][: settings.batch].to(prepared.device)
        seconds.append(timed(lambda: step(batch))[0])  # noqa: B023
        if not math.isfinite(losses[-1]):
            raise DivergedError(
                f"the loss of step {number + 1} is {losses[-1]}: lower `learning_rate`, "
                f"now {settings.learning_rate:g}"
            )
        tell(number + 1)
    return Trained(adapted.eval(), losses, seconds)


def _announce(module: Any) -> None:
    """peft takes a 4-bit layer of bitsandbytes for one only in a model that says it has any."""
    if any(type(part).__name__ == "Linear4bit" for part in module.modules()):
        module.is_loaded_in_4bit = True


def run(job: Job, folder: Path, tell: Callable[[int], None]) -> None:
    """Load, train, and write into `folder`."""
    import peft  # noqa: F401  # libraries are no part of what training takes
    import torch
    from safetensors.torch import load_file

    from bitgate.quantize import method
    from bitgate.sources import set_progress

    set_progress(lambda report: None)
    torch.set_num_threads(job.threads)
    memory, no_peak, before, taken = None, "", 0, None
    try:
        memory = meter(job.device)
        memory.start()
        before = memory.now()
    except UnavailableError as error:
        no_peak = str(error)
    quantized: Any = method(job.method).load(job.quantized, job.device)
    tokens = load_file(job.tokens)["tokens"]
    trained = train(quantized.module, quantized.layers, tokens, job.settings, tell)
    if memory is not None:
        taken = (memory.peak() - before) / MIB
    trained.module.save_pretrained(folder)
    record = Record(losses=trained.losses, seconds=trained.seconds, peak_mib=taken, no_peak=no_peak)
    (folder / RECORD).write_text(json.dumps(record), "utf-8")


def main(arguments: list[str]) -> int:
    job_file, folder = map(Path, arguments)
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    Thread(target=_end_with_input, daemon=True).start()
    job = Job.model_validate_json(job_file.read_text("utf-8"))
    run(job, folder, lambda step: _say(answers, step))
    return 0


def _say(answers: int, step: int) -> None:
    os.write(answers, f"{STEP}{step}\n".encode())


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(ABANDONED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
