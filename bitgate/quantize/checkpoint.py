"""A model that was quantized elsewhere, gated against its base like any other cell.

It is loaded as its users load it, through transformers, which reads from the checkpoint's own
`quantization_config` how it was quantized. "Quantizing" it is loading it. Which formats can be
loaded where: docs/methods/checkpoint.md.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from bitgate.catalog import (
    Execution,
    FileSource,
    HubSource,
    LocalSource,
    Model,
    Name,
    PackageSource,
    Recipe,
    nearest,
)
from bitgate.kernels.served import TorchServed
from bitgate.quantize import QuantizeError, Size
from bitgate.quantize.checkpoint_files import (
    DEQUANTIZED,
    DISTRIBUTIONS,
    FORMATS,
    KERNEL,
    WEIGHTS,
    Found,
    find,
    quantized_on_disk,
)
from bitgate.quantize.shapes import ModelShapes
from bitgate.sources import SourceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from bitgate.sources import LoadedModel


class CheckpointRecipe(Recipe):
    """Keys of a `[[recipe]]` with `method = "checkpoint"`; `bits` is for gates and tables, and must
    be what the checkpoint says of itself."""

    method: Literal["checkpoint"] = "checkpoint"
    source: Annotated[
        LocalSource | HubSource | FileSource | PackageSource, Field(discriminator="kind")
    ]
    label: Name = Field(description="what the recipe's name ends in")

    @field_validator("kernel")
    @classmethod
    def _kernel_is_the_librarys(cls, name: str) -> str:
        if name != "auto":
            raise ValueError("the library that loads a checkpoint serves it; leave kernel out")
        return name

    @property
    def name(self) -> str:
        """`checkpoint-LABEL`."""
        return f"{self.method}-{self.label}"


RECIPE = CheckpointRecipe
EXTRA = None  # which packages are needed depends on the checkpoint
OWN_KERNELS = (DEQUANTIZED, KERNEL)

NOTE = "bitgate.json"  #: beside the weights: the recipe, and the dtype of the rest


def fetch(recipe: CheckpointRecipe) -> Found:
    """The checkpoint that a recipe names, fetched if it lies elsewhere.

    Raises:
        QuantizeError, SourceError: if it cannot be had, or contradicts its recipe.
    """
    from bitgate.sources.fetch import fetch_once
    from bitgate.sources.hub import fetch_snapshot

    source, label = recipe.source, f"recipe {recipe.name}"
    if isinstance(source, HubSource):
        path = fetch_snapshot(source, label)
    elif isinstance(source, LocalSource):
        path = source.path
    else:
        path = fetch_once(source, label)
    try:
        found = find(path)
    except QuantizeError as error:
        raise QuantizeError(f"{label}: source: {error}") from None
    if recipe.bits is not None and found.bits is not None and recipe.bits != found.bits:
        raise QuantizeError(f"{label}: bits: the checkpoint says {found.bits}, not {recipe.bits}")
    return found


def misfit(recipe: CheckpointRecipe, model: Model) -> str | None:
    """Why a checkpoint that lies here cannot be that of a model, as far as files on disk say with
    nothing loaded; None if nothing does, or it lies elsewhere."""
    if not isinstance(recipe.source, LocalSource):
        return None
    try:
        found = fetch(recipe)
    except QuantizeError as error:
        return str(error)
    told = list(differences(_base_config(model), found.config))
    return f"{found.path} is of another model than the base: {'; '.join(told)}" if told else None


def _base_config(model: Model) -> Mapping[str, Any]:
    """What the base's configuration says, if that lies here: not what its class adds to it."""
    if not isinstance(model.source, LocalSource):
        return model.config or {}
    try:
        config: Mapping[str, Any] = json.loads(
            (model.source.path / "config.json").read_text("utf-8")
        )
    except (OSError, ValueError):  # whoever loads it says what is wrong
        return model.config or {}
    return config


# --- the protocol --------------------------------------------------------------------------


def kernel(shapes: ModelShapes, recipe: CheckpointRecipe, device: str) -> str:
    """Whether the library that loads it leaves the weights quantized; fetches the checkpoint."""
    return fetch(recipe).kernel


def predicted_bytes(
    shapes: ModelShapes, recipe: CheckpointRecipe, kernel: str, element: int
) -> Size | None:
    """Nothing is predicted: what lies on disk is as large as it is."""
    return None


def warm() -> None:
    """Import what `quantize` needs."""
    import transformers.quantizers.auto  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401


def quantize(model: LoadedModel, recipe: CheckpointRecipe, dtype: torch.dtype) -> Checkpoint:
    """Load the checkpoint, where the base `model` is, after holding it against it."""
    found = fetch(recipe)
    try:
        directory = _directory(found)
        _refuse_another_model(directory, model)
        device = str(next(model.module.parameters()).device)
        made = Checkpoint(found, recipe, _load(found, directory, device, dtype), dtype)
    except (QuantizeError, SourceError) as error:
        raise QuantizeError(f"recipe {recipe.name}: {error}") from None
    if found.format == "none":
        warnings.warn(
            f"recipe {recipe.name}: {found.path} is not quantized; it is measured as it is",
            stacklevel=2,
        )
    return made


def _directory(found: Found) -> Path:
    """Where transformers loads it from: a GGUF file is dequantized into a directory, once."""
    if found.format != "gguf":
        return found.path
    from bitgate.sources.gguf import gguf_directory

    source = LocalSource(kind="local", path=found.path)
    return gguf_directory(source, f"checkpoint {found.path.name}")


def _load(found: Found, directory: Path, device: str, dtype: torch.dtype) -> nn.Module:
    packages = FORMATS[found.format][0] if found.format in FORMATS else ()
    absent = [DISTRIBUTIONS.get(name, name) for name in packages if find_spec(name) is None]
    if absent:
        raise QuantizeError(
            f"to load {found.format} checkpoints, transformers needs {' and '.join(absent)}: "
            f"pip install {' '.join(absent)}"
        )
    from bitgate.sources.imports import import_transformers
    from bitgate.sources.quiet import untouched, without_bars

    import_transformers()
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = {name.removesuffix("_4bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if found.format not in {*known, "gguf", "none"}:  # the library would take it for unquantized
        raise QuantizeError(
            f"{found.path}: transformers does not know checkpoints of {found.format!r}; "
            f"{nearest(found.format, known)}"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every product
    with without_bars(), untouched():
        try:
            module, told = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                device_map={"": device},
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # whatever the library of the format raises
            raise QuantizeError(
                f"{found.path}: a {found.format} checkpoint that does not load on {device}: "
                f"{type(error).__name__}: {error}"
            ) from error
    missing = set(told["missing_keys"]) - set(getattr(module, "all_tied_weights_keys", ()))
    if missing:  # the library fills them with random numbers
        raise QuantizeError(f"{found.path}: it lacks {_some(missing)}")
    loaded: nn.Module = module.eval().requires_grad_(False)
    return loaded


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first


# --- beside its base -----------------------------------------------------------------------

#: in which a model and what it was quantized to cannot differ
SHARED = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What says that two configurations are of two models."""
    for key in SHARED:
        if key in base and key in other and base[key] != other[key]:
            yield f"{key} is {other[key]}, the base's is {base[key]}"


def _refuse_another_model(directory: Path, model: LoadedModel) -> None:
    config = json.loads((directory / "config.json").read_text("utf-8"))
    told = list(differences(model.module.config.to_dict(), config))
    if told:
        raise QuantizeError(f"{directory} is of another model than the base: {'; '.join(told)}")
    from bitgate.sources.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(directory)
    if tokenizer is not None and model.tokenizer is not None:
        _refuse_other_tokens(directory, tokenizer, model.tokenizer)


def _refuse_other_tokens(
    directory: Path, tokenizer: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase
) -> None:
    """A word that both have must be the same token; either may have some more."""
    ours, theirs = base.get_vocab(), tokenizer.get_vocab()
    moved = sorted(word for word, token in ours.items() if theirs.get(word, token) != token)
    if moved:
        raise QuantizeError(
            f"{directory}: its tokenizer numbers {len(moved)} words otherwise than the base's, "
            f"{moved[0]!r} for one: the same text is other tokens for it"
        )


# --- loaded --------------------------------------------------------------------------------


class Checkpoint:
    """A checkpoint in memory.

    Raises:
        QuantizeError: if nothing in its files is quantized, though the library is said to serve
            what is: no count of layers would say whether it does.
    """

    def __init__(
        self, found: Found, recipe: CheckpointRecipe, module: nn.Module, dtype: torch.dtype
    ) -> None:
        self.found = found
        self.recipe = recipe
        self.module = module
        self.dtype = dtype
        #: the layers that must be served quantized, and how each is kept on disk
        self.kept: dict[str, frozenset[str]] = {}
        if found.kernel != DEQUANTIZED:
            self.kept = quantized_on_disk(found, dict(module.named_modules()))
            if not self.kept:
                raise QuantizeError(
                    f"{found.path}: its config.json says {found.format}, but its files hold no "
                    "layer's weight in codes, so whether it is served quantized cannot be seen"
                )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Of every linear layer but the head; of one that some library keeps quantized, what it
        makes of unit vectors."""
        import torch
        from torch import nn

        head = self.module.get_output_embeddings()
        for name, layer in self.module.named_modules():
            if layer is head or not _stands_for_linear(layer):
                continue
            if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter:
                yield name, layer.weight
            else:
                with torch.inference_mode():
                    yield name, _by_unit_vectors(layer, self.dtype)

    def serve(self, execution: Execution) -> TorchServed:
        """With the layers counted whose weights are still quantized, beside those that are so on
        disk; none of either where the library dequantizes them.

        Of layers that are alike on disk only those of the commonest class count: where a library
        serves some of them otherwise, it fell back. Whether it did for all, their class tells.
        """
        alike: dict[frozenset[str], Counter[str]] = {}
        for name, kept in self.kept.items():
            if served_by := _quantized_class(self.module, name):
                alike.setdefault(kept, Counter())[served_by] += 1
        found = sum(max(classes.values()) for classes in alike.values())
        names = sorted(chain.from_iterable(alike.values()))
        return TorchServed(
            self.module, execution, found, len(self.kept), "+".join(dict.fromkeys(names))
        )

    def save(self, path: Path) -> None:
        """A folder with links to the checkpoint's own files: there is nothing to write."""
        path.mkdir()
        linked = self.found.weights()
        if self.found.path.is_dir():
            files = (file for file in self.found.path.iterdir() if file.is_file())
            linked += [file for file in files if file.suffix not in WEIGHTS]
        for file in linked:
            (path / file.name).symlink_to(file.resolve())
        note = {
            "recipe": self.recipe.model_dump_json(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        (path / NOTE).write_text(json.dumps(note), "utf-8")


def load(path: Path, device: str = "cpu") -> Checkpoint:
    """The checkpoint whose files `save` linked."""
    import torch

    note = json.loads((path / NOTE).read_text("utf-8"))
    recipe = CheckpointRecipe.model_validate_json(note["recipe"])
    file = next(path.glob("*.gguf"), None)
    found = find(path if file is None else file.resolve())
    dtype = getattr(torch, note["dtype"])
    return Checkpoint(found, recipe, _load(found, _directory(found), device, dtype), dtype)


def _stands_for_linear(layer: Any) -> bool:
    """Libraries' own classes for linear layers have these attributes as torch's has."""
    return hasattr(layer, "in_features") and hasattr(layer, "out_features")


def _by_unit_vectors(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight [out_features, in_features] that a layer multiplies with, whatever it is kept in:
    the same for every library, and as precise as its products are."""
    import torch

    device = next(chain(layer.parameters(), layer.buffers())).device
    origin = layer(torch.zeros(1, layer.in_features, device=device, dtype=dtype))
    columns = [
        layer(rows.to(device, dtype)) - origin
        for rows in torch.eye(layer.in_features).split(UNIT_VECTORS)
    ]
    return torch.cat(columns).T


#: how many are multiplied at once
UNIT_VECTORS = 256


def _quantized_class(module: nn.Module, name: str) -> str | None:
    """The class of a layer, or of its weight where the layer is torch's own; None if both are."""
    from torch import nn

    try:
        layer = module.get_submodule(name)
    except AttributeError:
        return None
    if type(layer) is not nn.Linear:
        return type(layer).__name__
    return None if type(layer.weight) is nn.Parameter else type(layer.weight).__name__
