"""Models of the catalog: fetched, checked for size, loaded, and known by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.catalog import FileSource, HubSource, LocalSource, Model, PackageSource, ShapesSource
from bitgate.sources.architecture import read_config, uninitialized
from bitgate.sources.checksum import sha256_of
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.fetch import fetch_once, identity
from bitgate.sources.gguf import conversion_key, gguf_directory
from bitgate.sources.hub import fetch_snapshot
from bitgate.sources.memory import check_fits
from bitgate.sources.quiet import without_bars
from bitgate.sources.shapes import GENERATOR, random_model
from bitgate.sources.state_dict import fill, read_state_dict

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: in evaluation mode, without gradients."""

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase | None  #: None if the source has none
    fingerprint: str  #: a hash of what the weights are: content or revision, and dtype
    directory: Path | None  #: where transformers can load it from, if anywhere


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
            case LocalSource() if source.path.is_dir():
                _expect(model, "transformers", because=f"{source.path} is a directory")
                return source.path
            case PackageSource() | FileSource() | LocalSource():
                _expect(model, "gguf", "state-dict", because="the source is one file")
                if model.format == "gguf":
                    return gguf_directory(source, label)
                return fetch_once(source, label)


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
        check_fits(config, dtype, device)
        if directory is not None:
            module = _from_directory(directory, device, dtype)
        elif path is not None:
            module = uninitialized(config, dtype)
            # the weights only: what the model computes itself, such as rotary frequencies, keeps
            # the precision that it computes it in
            weights = {name: tensor.to(dtype) for name, tensor in read_state_dict(path).items()}
            fill(module, weights, path)
            module = module.to(device)
        else:
            assert isinstance(model.source, ShapesSource)
            module = random_model(config, model.source.seed, dtype).to(device)
        return LoadedModel(
            module=module.eval().requires_grad_(False),
            tokenizer=_tokenizer(model.tokenizer or directory),
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
        case LocalSource() if source.path.is_dir():
            parts = ["directory", _directory_hashes(source.path)]
        case PackageSource() | FileSource() | LocalSource():
            if model.format == "gguf":
                parts = ["gguf", *conversion_key(source)]
            else:
                parts = ["state-dict", identity(source), model.config]
    return hashlib.sha256(json.dumps([*parts, str(dtype)], sort_keys=True).encode()).hexdigest()


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


def _from_directory(directory: Path, device: str, dtype: torch.dtype) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    placement = {} if device == "cpu" else {"device_map": {"": device}}
    with without_bars():
        try:
            # safetensors are mapped into memory, so nothing exists twice; .bin is read weights_only
            module: nn.Module = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True, trust_remote_code=False, **placement
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise SourceError(
                f"{directory} cannot be loaded: {error}; if it is damaged, remove that folder: "
                "what the cache lacks is fetched again"
            ) from error
    return module


def _tokenizer(directory: Path | None) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    patterns = ("tokenizer*", "vocab.*", "*.model")
    if directory is None or not any(any(directory.glob(pattern)) for pattern in patterns):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"{directory}: its tokenizer cannot be loaded: {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _directory_hashes(directory: Path) -> dict[str, str]:
    """The hash of every file that can change what is loaded."""
    kinds = (".json", ".safetensors", ".bin", ".model", ".txt")
    return {
        file.relative_to(directory).as_posix(): sha256_of(file)
        for file in sorted(directory.iterdir())
        if file.suffix in kinds and file.is_file()
    }
