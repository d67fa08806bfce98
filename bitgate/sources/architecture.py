"""A model's architecture without its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.catalog import Model, nearest
from bitgate.sources.errors import SourceError
from bitgate.sources.imports import import_transformers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


#: keys that transformers reads although its configurations no longer have them
STILL_READ = {"num_labels", "rope_scaling", "rope_theta", "torch_dtype"}


def read_config(model: Model, directory: Path | None) -> PreTrainedConfig:
    """The configuration: of the model's directory, or else from the catalog."""
    import_transformers()
    from transformers import AutoConfig

    if directory is not None:
        try:
            return AutoConfig.from_pretrained(directory, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f"{directory}: no usable config.json: {error}") from error
    if model.config is None:
        raise SourceError("this kind of source brings no config.json: the key `config` is missing")
    config = config_from(model.config)
    _refuse_unknown_keys(config, model.config)
    return config


def config_from(config: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration from its fields, `model_type` among them."""
    import_transformers()
    from transformers import AutoConfig

    fields = dict(config)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise SourceError("config: the key `model_type` is missing, such as 'llama'")
    try:
        return AutoConfig.for_model(kind, **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"config: {error}") from error


def _refuse_unknown_keys(config: Any, given: Mapping[str, Any]) -> None:
    """transformers keeps keys that it does not know, and takes its default for what was meant."""
    known = {field.name for field in dataclasses.fields(config)} | {"model_type"}
    known |= STILL_READ | set(config.attribute_map)
    for key in given.keys() - known:
        raise SourceError(
            f"config: {key}: unknown key of {config.model_type}; {nearest(key, known)}"
        )


def skeleton(config: PreTrainedConfig) -> nn.Module:
    """The model on the meta device: every shape, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def uninitialized(config: PreTrainedConfig, dtype: Any) -> nn.Module:
    """The model on the CPU with whatever its memory held; its buffers are computed."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        module: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    module.tie_weights()  # skipped together with the initialization
    return module
