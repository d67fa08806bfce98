"""A small model trained from its configuration alone.

AdamW (Loshchilov and Hutter, ICLR 2019) with one cycle of the learning rate (Smith and Topin,
2019): up in the first part of all steps, down to nearly nothing in the rest. Larger images are
moved by a pixel at most, at random.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from bitgate.catalog import TrainedSource
from bitgate.sources.architecture import made
from bitgate.sources.errors import SourceError
from bitgate.sources.labelled import LabelledItems, load_items
from bitgate.sources.progress import track
from bitgate.sources.quiet import without_bars
from bitgate.sources.suited import refuse_images

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

LOSSES = "training.json"
RISING = 0.15  #: share of the steps in which the learning rate rises
LONGEST_GRADIENT = 1.0  #: norm to which gradients are clipped
TOGETHER = 256  #: images at a time where nothing is learned
#: images at least this wide are moved; of smaller ones a pixel is too much
MOVED = 16


def train_whole(folder: Path, config: PreTrainedConfig, source: TrainedSource, label: str) -> None:
    """Save into `folder` a model of this configuration, trained on the dataset, and
    `training.json`: loss, without label smoothing, and accuracy of every epoch, in training and on
    items that it does not learn from.

    The same seed gives the same weights, as everything runs on one thread of the CPU.

    Raises:
        SourceError: if the dataset is not of images with labels, has fewer than a batch to train
            with, or images that the model does not take; or the loss becomes NaN.
    """
    import torch

    dataset = source.dataset
    if dataset.of != "images":
        raise SourceError("source.dataset: whole models are trained on images; give a `base`")
    if not dataset.classes:
        raise SourceError(
            f"source.dataset: {dataset.name} has no labels to learn from; give one with `classes`"
        )
    if not dataset.train_items:
        raise SourceError(f"labelled {dataset.name}: train_items: it has none to train with")
    training, validation = (load_items(dataset, p) for p in ("training", "validation"))
    if len(training) < source.batch:
        raise SourceError(
            f"source.batch: {source.batch}, of which {len(training)} items of training make none"
        )
    began = monotonic()
    with _repeatable(source.seed):
        module = made(config, "image-classification", dtype=torch.float32).eval()
        refuse_images("the model", module, dataset, training.inputs[0:1])
        epochs = []
        with track(f"{label}: train", source.epochs, "epochs") as task:
            for told in _epochs(module, training, source):
                seen = _score(module, training)
                held = _score(module, validation) if len(validation) else (None, None)
                epochs.append(
                    {
                        **told,
                        "training_loss": seen[0],
                        "training_accuracy": seen[1],
                        "validation_loss": held[0],
                        "validation_accuracy": held[1],
                    }
                )
                task.update(len(epochs))
    with without_bars():
        module.eval().save_pretrained(folder)
    record = {"epochs": epochs, "seconds": monotonic() - began}
    (folder / LOSSES).write_text(json.dumps(record, indent=1), "utf-8")


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """One thread, and random numbers from a seed; afterwards, both as they were."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _epochs(
    module: nn.Module, items: LabelledItems, source: TrainedSource
) -> Iterator[dict[str, float]]:
    """Learn, an epoch at a time, and say which it was and its mean loss, with label smoothing."""
    import torch
    from torch.nn.functional import cross_entropy

    inputs, labels = _all(items)
    batches = len(inputs) // source.batch  # what is left over is in another epoch's batches
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=source.learning_rate, weight_decay=source.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, source.learning_rate, total_steps=source.epochs * batches, pct_start=RISING
    )
    for epoch in range(1, source.epochs + 1):
        module.train()
        order, total = torch.randperm(len(inputs)), 0.0
        for batch in order[: batches * source.batch].split(source.batch):
            logits = module(pixel_values=_moved(inputs[batch])).logits
            loss = cross_entropy(logits, labels[batch], label_smoothing=source.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if not total < float("inf"):
            raise SourceError(
                f"source.learning_rate: the loss is {total / batches} in epoch {epoch}; lower it"
            )
        yield {"epoch": epoch, "loss": total / batches}


def _moved(images: Tensor) -> Tensor:
    """All by the same pixel or none, up or down and left or right; what comes in is the darkest."""
    import torch
    from torch.nn.functional import pad

    if images.shape[-1] < MOVED:
        return images
    down, right = torch.randint(0, 3, (2,)).tolist()
    height, width = images.shape[-2:]
    padded = pad(images, (1, 1, 1, 1), value=float(images.min()))
    return padded[..., down : down + height, right : right + width]


def _score(module: nn.Module, items: LabelledItems) -> tuple[float, float]:
    """Mean loss and accuracy, in evaluation mode."""
    import torch
    from torch.nn.functional import cross_entropy

    module.eval()
    inputs, labels = _all(items)
    with torch.no_grad():
        parts = inputs.split(TOGETHER)
        logits = torch.cat([module(pixel_values=part).logits for part in parts])
    right = (logits.argmax(-1) == labels).float().mean()
    return float(cross_entropy(logits, labels)), float(right)


def _all(items: LabelledItems) -> tuple[Tensor, Tensor]:
    """Images [n, channels, height, width] and labels int64 [n]."""
    import torch

    assert items.labels is not None
    images: Tensor = items.inputs[0 : len(items)]
    return images, torch.tensor(items.labels)
