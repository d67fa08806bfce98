"""The shapes of a model from all that is known of it without its weights."""

from __future__ import annotations

import json
from pathlib import Path

from bitgate.catalog import FileSource, Model, PackageSource, TrainedSource
from bitgate.quantize.lock import Locks
from bitgate.quantize.shapes import ModelShapes, shapes_of
from bitgate.sources.architecture import HEADS, complete_config, skeleton, task_called
from bitgate.sources.errors import SourceError
from bitgate.sources.models import fetch_config


def shapes_without_weights(model: Model, locks: Locks) -> ModelShapes:
    """Those that were locked, or else those that follow from the model's configuration.

    Raises:
        SourceError: if that cannot be reached, or comes only with the weights.
    """
    found = locks.shapes(model)
    if found is not None:
        return found
    if (inside := _of_weights(model)) is not None:
        raise SourceError(
            f"model {inside.name}: its shapes are in one file with its weights, which is not "
            f"fetched for this; `bitgate lock --model {model.name}` does, once, and keeps them"
        )
    return shapes_of(skeleton(fetch_config(model), model.task))


def _of_weights(model: Model) -> Model | None:
    """The model whose configuration comes only with weights that are elsewhere; None if its own
    can be had."""
    source = model.source
    if isinstance(source, TrainedSource):
        return None if source.base is None else _of_weights(source.base)
    elsewhere = isinstance(source, PackageSource | FileSource) and model.format == "gguf"
    return model if elsewhere else None


def shapes_of_config(path: Path) -> ModelShapes:
    """Those of a model of which there is only a `config.json`, or a folder with one.

    Raises:
        SourceError: if that cannot be read, lacks what shapes follow from, or is of an architecture
            that transformers does not know.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        given = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise SourceError(f"there is no {file.name} in it") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"it cannot be read: {error}") from None
    if not isinstance(given, dict):
        raise SourceError("it is no configuration, which has keys and values")
    names = given.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SourceError(f"config: architectures: expected a list of names, got {names!r}")
    module = skeleton(complete_config(given), task_called(" ".join(names)))
    made = type(module).__name__
    if names and made not in names:
        raise SourceError(
            f"config: architectures: {', '.join(names)}: only models are known that end in "
            f"{', '.join(HEADS.values())}; without this key it is taken for {made}"
        )
    return shapes_of(module)


def name_of(path: Path) -> str:
    """What to call such a model: as its folder is, or its file."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == "config.json" else path.stem
