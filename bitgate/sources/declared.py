"""What a model's shapes follow from, known without loading it, and without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bitgate.catalog import (
    FileSource,
    HubSource,
    LocalSource,
    Model,
    PackageSource,
    ShapesSource,
    TrainedSource,
)

_BEGINNING = 1 << 16  #: bytes of a GGUF file, whose header begins with the architecture


def declared(model: Model) -> str | None:
    """A hash that changes whenever the model's shapes may; None if it is on another machine.

    Where the weights are and what is in them does not count: a directory is known by its
    `config.json`, a single local file by its size and its beginning.
    """
    try:
        parts = _parts(model)
    except OSError:
        return None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _parts(model: Model) -> list[Any]:
    source = model.source
    match source:
        case ShapesSource():
            return ["config", model.config]
        case HubSource():
            return ["hub", source.repo, source.revision]
        case TrainedSource():
            base = model.config if source.base is None else declared(source.base)
            return ["trained", base, len(source.dataset.classes)]
        case LocalSource() if source.path.is_dir():
            config = (source.path / "config.json").read_bytes()
            return ["config.json", hashlib.sha256(config).hexdigest()]
        case PackageSource() | FileSource() | LocalSource() if model.format == "state-dict":
            return ["config", model.config]
        case PackageSource() | FileSource():
            return ["gguf", source.sha256]
        case LocalSource():
            return ["gguf", *_sample(source.path)]


def _sample(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    return path.stat().st_size, hashlib.sha256(beginning).hexdigest()
