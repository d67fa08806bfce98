"""A model's architecture without its weights."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.catalog import LabelledDataset, Model, Task, nearest
from bitgate.sources.errors import SourceError
from bitgate.sources.imports import import_transformers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


#: keys that transformers reads although its configurations no longer have them
STILL_READ = {
    "id2label",
    "label2id",
    "num_labels",
    "pad_token_id",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
}

#: what weights are saved in, by torch's names
DTYPES = ("float32", "float16", "bfloat16", "float64")

#: what transformers and torch raise of a configuration that no model can be made of
UNUSABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_config(model: Model, directory: Path | None) -> PreTrainedConfig:
    """The configuration: of the model's directory, or else from the catalog."""
    import_transformers()
    from transformers import AutoConfig

    if directory is not None:
        try:
            return AutoConfig.from_pretrained(directory, trust_remote_code=False)
        except (OSError, *UNUSABLE) as error:
            raise SourceError(f"{directory}: no usable config.json: {error}") from error
    if model.config is None:
        raise SourceError("this kind of source brings no config.json: the key `config` is missing")
    config = config_from(model.config)
    _refuse_unknown_keys(config, model.config)
    return config


def config_from(config: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration from its fields, `model_type` among them."""
    import_transformers()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = deepcopy(dict(config))  # transformers adds to nested ones, such as rope_scaling
    kind = fields.pop("model_type", None)
    if kind is None:
        raise SourceError("config: the key `model_type` is missing, such as 'llama'")
    if not isinstance(kind, str):
        raise SourceError(f"config: model_type: expected a name such as 'llama', got {kind!r}")
    if kind not in CONFIG_MAPPING:
        raise SourceError(
            f"config: model_type: transformers {version('transformers')} knows no {kind!r}; "
            f"{nearest(str(kind), CONFIG_MAPPING)}"
        )
    _refuse_unknown_dtypes(fields)
    try:
        return AutoConfig.for_model(kind, **fields)
    except (*UNUSABLE, StrictDataclassError) as error:
        raise SourceError(f"config: {_last_line(error)}") from error


def _refuse_unknown_dtypes(fields: Mapping[str, Any], where: str = "") -> None:
    """transformers asks torch for whatever is said, in an error that names no key."""
    import torch

    for key, value in fields.items():
        if key in PARTS and isinstance(value, Mapping):
            _refuse_unknown_dtypes(value, f"{where}{key}.")
        if key not in ("dtype", "torch_dtype") or not isinstance(value, str):
            continue
        if not isinstance(getattr(torch, value, None), torch.dtype):
            raise SourceError(
                f"config: {where}{key}: torch knows no {value!r}; {nearest(value, DTYPES)}"
            )


def _last_line(error: Exception) -> str:
    """What an error is about, where the library first says in which of its parts it was found."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\s*\w+Error: ", "", lines[-1])


def config_again(saved: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration that was written as this JSON, in which some say more under other keys."""
    import_transformers()
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[saved["model_type"]].from_dict(deepcopy(dict(saved)))


def _refuse_unknown_keys(config: Any, given: Mapping[str, Any]) -> None:
    """transformers keeps keys that it does not know, and takes its default for what was meant."""
    known = {field.name for field in dataclasses.fields(config)} | {"model_type"}
    known |= STILL_READ | set(config.attribute_map)
    for key in given.keys() - known:
        raise SourceError(
            f"config: {key}: unknown key of {config.model_type}; {nearest(key, known)}"
        )


#: what a model's shapes follow from, as transformers calls it in every configuration that has it;
#: what is not given for some is derived from others, and has no default then
SHAPING = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_key_value_heads",
    "head_dim",
    "state_size",
    "image_size",
    "patch_size",
    "hidden_sizes",
    "embed_dim",
    "depths",
)
#: the same of mixtures of experts, which call one thing this or that
SHAPING_EXPERTS = (
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "n_shared_experts",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
#: what is within a configuration: of a model of images and text one of each
PARTS = ("text_config", "vision_config")


def complete_config(given: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration from the fields of a `config.json`, whose library takes its own default for
    what is missing: the shapes would be another model's. transformers writes all of its fields, but
    of those within it only what differs from the default.

    Raises:
        SourceError: if one is missing, or the architecture is not known.
    """
    within = {f"{name}.": given[name] for name in PARTS if isinstance(given.get(name), Mapping)}
    for where, part in {"": given, **within}.items():
        for key in SHAPING:
            if isinstance(number := part.get(key), int) and number <= 0:
                raise SourceError(f"config: {where}{key}: expected a number above 0, got {number}")
    config = config_from(given)
    missing = [name for name in PARTS if name in config.sub_configs and name not in given]
    missing += _missing(config, given)
    if missing:
        one = len(missing) == 1
        raise SourceError(
            f"config: {', '.join(missing)}: {'this key is' if one else 'these keys are'} missing, "
            f"and the shapes of {config.model_type} follow from {'it' if one else 'them'}"
        )
    return config


def _missing(config: Any, given: Mapping[str, Any]) -> Iterator[str]:
    """Keys that shapes follow from and that only the library's default says."""
    defaults, seen = {one.name: one for one in dataclasses.fields(config)}, set[str]()
    known = defaults.keys()
    aliases: Mapping[str, str] = config.attribute_map
    for standard in (*SHAPING, *SHAPING_EXPERTS):
        one = aliases.get(standard, standard)
        names = {one, *(name for name, other in aliases.items() if other == one)}
        if one in seen or not names & known or names & given.keys():
            continue
        seen.add(one)
        key = one if one in known else min(names & known)
        if _default(defaults[key]) is not None:
            yield key


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


#: what a model ends in, by task
HEADS: dict[Task, str] = {
    "causal-lm": "ForCausalLM",
    "text-classification": "ForSequenceClassification",
    "image-classification": "ForImageClassification",
}


def auto_class(task: Task) -> Any:
    """transformers' class that makes a model for this task of any architecture that has one."""
    import_transformers()
    import transformers

    return getattr(transformers, f"AutoModel{HEADS[task]}")


def made(config: PreTrainedConfig, task: Task, **options: Any) -> nn.Module:
    """The model of a configuration; where transformers has several for a task, the first.

    Raises:
        SourceError: if the architecture has nothing for this task, or is of a library that is
            missing; or if no model can be made of the configuration.
    """
    if config.model_type == "timm_wrapper" and find_spec("timm") is None:
        raise SourceError(
            "config.model_type: timm_wrapper is a model of timm, which is not installed: "
            "pip install 'bitgate[images]'"
        )
    config.architectures = config.architectures or []
    auto = auto_class(task)
    try:
        module: nn.Module = auto.from_config(config, trust_remote_code=False, **options)
    except UNUSABLE as error:
        if "Unrecognized configuration class" in str(error):  # and all that would be, by name
            raise SourceError(
                f"config: transformers has no {HEADS[task]} of {config.model_type}"
            ) from None
        raise SourceError(f"config: {_of_field(config, error)}") from error
    return module


def _of_field(config: PreTrainedConfig, error: Exception) -> str:
    """What an error is about: where it can be told, which field of the configuration."""
    if isinstance(error, KeyError):
        value = next(iter(error.args), None)
        found = next(_called(config.to_dict(), value), None)
        if value is not None and found is not None:
            return f"{found}: transformers {version('transformers')} knows no {value!r}"
    if str(error).startswith("Padding_idx"):  # torch's name of it
        text = config.get_text_config()
        return f"pad_token_id: {getattr(text, 'pad_token_id', None)} is outside of the vocabulary"
    if isinstance(error, ValueError | ImportError):  # written for whoever configures
        return str(error)
    said = str(error).strip().partition("\n")[0]
    return f"transformers can make no {config.model_type} of it: {type(error).__name__}: {said}"


def _called(fields: Mapping[str, Any], value: object) -> Iterator[str]:
    """Which of the fields, and of those within them, have a value."""
    for key, found in fields.items():
        if isinstance(found, Mapping):
            yield from (f"{key}.{inner}" for inner in _called(found, value))
        elif found == value:
            yield str(key)


def task_of(module: nn.Module) -> Task:
    """What a model is asked, by the name of its class, such as DeiTForImageClassification or
    DeiTForImageClassificationWithTeacher."""
    return task_called(type(module).__name__)


def task_called(classes: str) -> Task:
    """What models of these classes are asked."""
    return next((task for task, head in HEADS.items() if head in classes), "causal-lm")


def positions(module: Any) -> int | None:
    """How many tokens a model can tell the places of; None for any number.

    Where its positions count from behind the one of padding, as in RoBERTa, that and all before are
    none.
    """
    import torch

    keys = ("max_position_embeddings", "n_positions")
    configs = (module.config, module.config.get_text_config())
    found = [getattr(config, key, None) for config in configs for key in keys]
    found += [
        part.num_embeddings - part.padding_idx - 1
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Embedding)
        and name.endswith("position_embeddings")
        and part.padding_idx is not None
    ]
    return min((one for one in found if isinstance(one, int) and one > 0), default=None)


#: what a configuration says of where it was read from, and in which dtype the weights are there
READ_FROM = ("_name_or_path", "dtype")


def config_text(module: nn.Module) -> str:
    """A model's configuration as JSON, with all defaults and its class, but nothing of where it was
    read from: the same for a model and its skeleton, whatever file that is of."""
    text: str = module.config.to_json_string(use_diff=False)
    kept = _without(READ_FROM, json.loads(text))
    return json.dumps({**kept, "architectures": [type(module).__name__]})


def _without(keys: Collection[str], said: Any) -> Any:
    """Of the configurations within it, too: a model of images and text has one of each."""
    if not isinstance(said, dict):
        return said
    return {key: _without(keys, value) for key, value in said.items() if key not in keys}


def skeleton(config: PreTrainedConfig, task: Task = "causal-lm") -> nn.Module:
    """The model on the meta device: every shape, no memory."""
    import torch

    with torch.device("meta"):
        return _not_filled(config, task)


def uninitialized(config: PreTrainedConfig, dtype: Any, task: Task = "causal-lm") -> nn.Module:
    """The model on the CPU with whatever its memory held; its buffers are computed."""
    return _not_filled(config, task, dtype=dtype)


def _not_filled(config: PreTrainedConfig, task: Task, **options: Any) -> Any:
    from transformers.initialization import no_init_weights

    with no_init_weights():
        module: Any = made(config, task, **options)
    module.tie_weights()  # skipped together with the initialization
    return module


def labels_of(dataset: LabelledDataset) -> dict[str, Any]:
    """What a configuration says of classes."""
    return {
        "num_labels": len(dataset.classes),
        "id2label": dict(enumerate(dataset.classes)),
        "label2id": {name: number for number, name in enumerate(dataset.classes)},
    }
