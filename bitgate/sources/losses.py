"""`training.json`: what each epoch of a training gave, on the items learned from and on others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bitgate.sources.errors import SourceError

FILE = "training.json"


@dataclass(frozen=True)
class Epoch:
    """Cross-entropy in nats per item, and the share of items that are right, after an epoch.

    Of validation None, where there is none.
    """

    epoch: int  #: from 1
    training_loss: float
    training_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True)
class Losses:
    """All epochs of a training; `kept` is the one whose weights the model has, the last if the
    file does not say so."""

    epochs: tuple[Epoch, ...]
    kept: int

    def best(self) -> Epoch | None:
        """The epoch with the lowest validation loss, the first of equals; None without any."""
        known = [epoch for epoch in self.epochs if epoch.validation_loss is not None]
        return min(known, key=lambda epoch: epoch.validation_loss or 0.0, default=None)


def write_losses(folder: Path, epochs: Sequence[Epoch], kept: int) -> None:
    """Into the directory of the model."""
    content = {"epochs": [asdict(epoch) for epoch in epochs], "kept": kept}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def read_losses(folder: Path) -> Losses:
    """Those of a model's directory.

    Raises:
        SourceError: if it has none, or the file is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        known = [field.name for field in fields(Epoch)]  # a training may say more
        epochs = tuple(
            Epoch(**{name: epoch[name] for name in known if name in epoch})
            for epoch in content["epochs"]
        )
        found = Losses(epochs, int(content.get("kept", len(epochs))))
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file; was this model trained here?") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path} is damaged ({error!r}): remove {folder}, it is trained again"
        ) from error
    if not epochs:
        raise SourceError(f"{path} has no epochs: remove {folder}, it is trained again")
    return found
