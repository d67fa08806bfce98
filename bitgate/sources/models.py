"""Models of the catalog: fetched, checked for size, loaded, and known by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.catalog import (
    FileSource,
    HubSource,
    LocalSource,
    Model,
    PackageSource,
    ShapesSource,
    Task,
    TrainedSource,
)
from bitgate.sources.architecture import auto_class, read_config, uninitialized
from bitgate.sources.checksum import sha256_of
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.fetch import fetch_once, identity
from bitgate.sources.gguf import conversion_key, gguf_config, gguf_directory
from bitgate.sources.hub import fetch_config_file, fetch_snapshot
from bitgate.sources.memory import check_fits
from bitgate.sources.quiet import without_bars
from bitgate.sources.shapes import GENERATOR, random_model
from bitgate.sources.state_dict import fill, in_order, read_state_dict
from bitgate.sources.tokenizer import read_tokenizer
from bitgate.sources.trained import trained_config, trained_directory, training_key

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

#: files of a directory that can change what is loaded: configuration and tokenizer, and weights
TEXT = (".json", ".model", ".txt")
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: in evaluation mode, without gradients."""

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase | None  #: None if the source has none
    fingerprint: str  #: a hash of what the weights are: content or revision, and dtype
    directory: Path | None  #: where transformers can load it from, if anywhere
    #: whether nobody needs the module once it is quantized: its layers are then let go of one by
    #: one, by the methods that replace layers, so that it is never in memory twice
    expendable: bool = False


def fetch_model(model: Model) -> Path | None:
    """Put the model where it can be loaded from, without loading it.

    The path is a directory for transformers or, with format `state-dict`, a file; None if nothing
    needs to be fetched.
    """
    label, source = _label(model), model.source
    with blaming(label):
        if isinstance(source, LocalSource) and not source.path.exists():
            raise SourceError(f"source.path: there is no {source.path}")
        match source:
            case ShapesSource():
                return None
            case HubSource():
                _expect(model, "transformers", because="a hub repository is a directory")
                return fetch_snapshot(source, label)
            case TrainedSource():
                base, known = _base_of(source)
                return trained_directory(model, source, base, known, label)
            case LocalSource() if source.path.is_dir():
                _expect(model, "transformers", because=f"{source.path} is a directory")
                return source.path
            case PackageSource() | FileSource() | LocalSource():
                _expect(model, "gguf", "state-dict", because="the source is one file")
                if model.format == "gguf":
                    return gguf_directory(source, label)
                return fetch_once(source, label)


def fetch_config(model: Model) -> PreTrainedConfig:
    """The model's configuration, without its weights wherever these are not in the same file.

    Raises:
        SourceError: if the source cannot be reached, or brings none.
    """
    label, source = _label(model), model.source
    with blaming(label):
        match source:
            case ShapesSource():
                return read_config(model, None)
            case HubSource():
                return read_config(model, fetch_config_file(source, label))
            case TrainedSource():
                base = None if source.base is None else fetch_config(source.base)
                return trained_config(model, source, base)
            case LocalSource() if source.path.is_dir():
                return read_config(model, source.path)
            case PackageSource() | FileSource() | LocalSource():
                if model.format == "gguf":
                    return gguf_config(source, label)
                return read_config(model, None)


def load_model(
    model: Model, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model on a device; `dtype` None takes the one that its config names.

    Whether it fits there is checked before any weights are read.
    """
    path = fetch_model(model)
    directory = path if path is not None and path.is_dir() else None
    with blaming(_label(model)):
        config = read_config(model, directory)
        dtype = dtype or _dtype_of(config)
        check_fits(config, dtype, device, task=model.task)
        if directory is not None:
            module = _from_directory(directory, device, dtype, model.task)
        elif path is not None:
            module = uninitialized(config, dtype, model.task)
            # the weights only: what the model computes itself, such as rotary frequencies, keeps
            # the precision that it computes it in
            weights = read_state_dict(path)
            if model.keys == "order":
                weights = in_order(module, weights, path)
            floating = {n: t.to(dtype) for n, t in weights.items() if t.is_floating_point()}
            fill(module, {**weights, **floating}, path)
            module = module.to(device)
        else:
            assert isinstance(model.source, ShapesSource)
            module = random_model(config, model.source.seed, dtype, model.task).to(device)
        return LoadedModel(
            module=module.eval().requires_grad_(False),
            tokenizer=read_tokenizer(model.tokenizer or directory),
            fingerprint=fingerprint(model, dtype),
            directory=directory,
        )


def fingerprint(model: Model, dtype: torch.dtype) -> str:
    """A hash that changes with the model's weights, however they are named."""
    source, parts = model.source, list[Any]()
    match source:
        case ShapesSource():
            parts = ["shapes", source.seed, model.config, GENERATOR]
        case HubSource():
            parts = ["hub", source.repo, source.revision]
        case TrainedSource():
            parts = ["trained", *training_key(model, source, _base_of(source)[1])]
        case LocalSource() if source.path.is_dir():
            parts = ["directory", _directory_hashes(source.path, (*TEXT, *WEIGHTS))]
        case PackageSource() | FileSource() | LocalSource():
            if model.format == "gguf":
                parts = ["gguf", *conversion_key(source)]
            else:
                parts = ["state-dict", identity(source), model.config]
                parts += [model.keys] if model.keys != "name" else []
    return hashlib.sha256(json.dumps([*parts, str(dtype)], sort_keys=True).encode()).hexdigest()


def _base_of(source: TrainedSource) -> tuple[Path | None, str]:
    """Where the model is whose head is trained, and what it and its tokenizer are; None where all
    of it is trained."""
    base = source.base
    if base is None:
        return None, ""
    directory = fetch_model(base)
    if directory is None or not directory.is_dir():
        raise SourceError(
            f"source.base: {base.name} has no directory that transformers could load it from"
        )
    known = fingerprint(base, _dtype_of(read_config(base, directory)))
    if base.tokenizer is not None:  # the weights' own directory has none
        if not base.tokenizer.is_dir():
            raise SourceError(f"source.base: {base.name}: tokenizer: there is no {base.tokenizer}")
        known = json.dumps([known, _directory_hashes(base.tokenizer, TEXT)])
    return directory, known


def _label(model: Model) -> str:
    return f"model {model.name}"


def _expect(model: Model, *formats: str, because: str) -> None:
    if model.format not in formats:
        raise SourceError(
            f"format: {model.format!r} does not go with this source ({because}); "
            f"give {' or '.join(map(repr, formats))}"
        )


def _dtype_of(config: PreTrainedConfig) -> torch.dtype:
    import torch

    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _from_directory(directory: Path, device: str, dtype: torch.dtype, task: Task) -> nn.Module:
    from safetensors import SafetensorError

    placement = {} if device == "cpu" else {"device_map": {"": device}}
    with without_bars():
        try:
            # safetensors are mapped into memory, so nothing exists twice; .bin is read weights_only
            module: nn.Module = auto_class(task).from_pretrained(
                directory, dtype=dtype, local_files_only=True, trust_remote_code=False, **placement
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise SourceError(
                f"{directory} cannot be loaded: {error}; if it is damaged, remove that folder: "
                "what the cache lacks is fetched again"
            ) from error
    return module


def _directory_hashes(directory: Path, kinds: tuple[str, ...]) -> dict[str, str]:
    """The hash of every file of these kinds."""
    return {
        file.relative_to(directory).as_posix(): sha256_of(file)
        for file in sorted(directory.iterdir())
        if file.suffix in kinds and file.is_file()
    }
