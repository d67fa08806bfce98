"""Models that are trained here: once for all processes, and kept under a key of all that made them.

Beside the weights lie the losses of every epoch, so that overfitting is seen: `losses`.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.catalog import Model, TrainedSource
from bitgate.sources.architecture import config_from, labels_of
from bitgate.sources.cache import once
from bitgate.sources.labelled import load_items

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

AREA = "trained"
FORMAT = 1  #: raise it when the same key would give other weights


def trained_directory(
    model: Model, source: TrainedSource, base: Path | None, fingerprint: str, label: str
) -> Path:
    """The directory of a model that is trained here, if it has not been already.

    `base` is the directory of the model whose head is trained, `fingerprint` says what it is.
    """

    def build(folder: Path) -> None:
        # when something is trained: collection reads this module
        if base is not None:
            from bitgate.sources.train_head import train_head

            train_head(folder, base, fingerprint, source, label)
        else:
            from bitgate.sources.train_whole import train_whole

            train_whole(folder, trained_config(model, source, None), source, label)

    return once(AREA, *training_key(model, source, fingerprint), build=build, label=label)


def training_key(model: Model, source: TrainedSource, fingerprint: str) -> list[str]:
    """Everything that determines the weights, and what the model calls its classes."""
    dataset = source.dataset
    settings = source.model_dump(mode="json", exclude={"base", "dataset"})
    items = [load_items(dataset, part).fingerprint for part in ("training", "validation")]
    versions = {name: version(name) for name in ("torch", "transformers")}
    content = [settings, model.config, dataset.longest, list(dataset.classes), versions]
    return [
        str(FORMAT),
        fingerprint,
        json.dumps(content, sort_keys=True),
        *_read_on(source),
        *items,
    ]


def _read_on(source: TrainedSource) -> list[str]:
    """Device and dtype of the features that a head learns from; a whole model has none, it is
    trained on the CPU wherever it is."""
    if source.base is None:
        return []
    from bitgate.sources.train_head import reader

    return [str(one) for one in reader()]


def trained_config(
    model: Model, source: TrainedSource, base: PreTrainedConfig | None
) -> PreTrainedConfig:
    """The configuration, with the classes of the dataset."""
    classes = labels_of(source.dataset)
    if base is None:
        assert model.config is not None
        return config_from({**model.config, **classes})
    for key, value in classes.items():
        setattr(base, key, value)
    return base
