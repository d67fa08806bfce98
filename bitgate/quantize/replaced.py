"""A model in which quantized layers stand in place of some of its own, and the file it is kept in.

What is the same for every method that replaces layers is here; what a layer consists of is told by
the method's `Codec`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitgate import kernels
from bitgate.catalog import Execution, Recipe
from bitgate.quantize import QuantizeError
from bitgate.quantize.replaced_sizes import metadata_of
from bitgate.quantize.shapes import head_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitgate.kernels.affine import Affine
    from bitgate.kernels.served import TorchServed


class Codec(Protocol):
    """How a method's layers are taken apart for a file and put together again."""

    @property
    def format(self) -> str:
        """Of the file; another one is refused."""
        ...

    @property
    def recipe_type(self) -> type[Recipe]:
        """Of the recipe that the file keeps."""
        ...

    def layer_class(self) -> type[nn.Module]:
        """The class of the layers, the only one that counts as served by them."""
        ...

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        """What the layer consists of, by part, whose name has no dot; its `bias`, if it has one,
        is not among it."""
        ...

    def meta(self, layer: Any) -> dict[str, Any]:
        """Everything else, as JSON."""
        ...

    def rebuild(
        self,
        recipe: Any,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> nn.Module:
        """The layer again, bit by bit, on the device of its parts; the model computes in `dtype`.

        A part that is missing is a KeyError.
        """
        ...

    def dequantize(self, layer: Any) -> Tensor:
        """The weight that the layer stands for, shaped as the base's."""
        ...

    def affine(self, layer: Any) -> Affine:
        """The layer's codes, scale and zero, for a kernel that is not the method's own."""
        ...


class ReplacedModel:
    """A model whose `layers`, by name, were replaced by those of `codec`; it shares all other
    tensors with the base."""

    def __init__(
        self,
        module: nn.Module,
        recipe: Any,
        layers: tuple[str, ...],
        codec: Codec,
        dtype: torch.dtype,
    ) -> None:
        self.module = module
        self.recipe = recipe
        self.layers = layers
        self.codec = codec
        self.dtype = dtype  #: in which everything else computes

    def layer(self, name: str) -> Any:
        return self.module.get_submodule(name)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.layers:
            yield name, self.codec.dequantize(self.layer(name))

    def affine(self, name: str) -> Affine:
        """A layer's weight, for a kernel that is not the method's own."""
        try:
            return self.codec.affine(self.layer(name))
        except QuantizeError as error:
            raise QuantizeError(f"{name}: {error}") from None

    def kernel_of(self, name: str, kernel: str) -> str:
        """The kernel that serves a layer where `kernel` serves the model; a method whose layers may
        need several says which."""
        return kernel

    def serve(self, execution: Execution) -> TorchServed:
        from bitgate.kernels.served import TorchServed

        module = self.module
        packed: dict[str, type[nn.Module]] = {}
        serving = {name: self.kernel_of(name, execution.kernel) for name in self.layers}
        if not kernels.KERNELS.keys().isdisjoint(serving.values()):
            module = share(self.module)
        for name, kernel in serving.items():
            if kernel in kernels.KERNELS:
                packing = kernels.kernel(kernel)
                put(module, name, packing.pack(self.affine(name), self.layer(name).bias))
                packed[name] = packing.layer_class()
        classes = set(packed.values())

        def serves(name: str, part: nn.Module) -> bool:
            if name in packed:
                return type(part) is packed[name]
            return self.serves(part) or (name not in self.layers and type(part) in classes)

        # count what stands there now, by its exact class: a library that swapped a layer, left one
        # alone, or put one where none should be, is seen here
        found = sum(serves(name, part) for name, part in module.named_modules())
        return TorchServed(module, execution, found, len(self.layers))

    def serves(self, part: nn.Module) -> bool:
        """Whether a layer is one of the method's own, which its own kernel executes."""
        return type(part) is self.codec.layer_class()

    def save(self, path: Path) -> None:
        """One safetensors file: the layers' parts, the rest of the model, and its configuration.

        Everything is a plain tensor or JSON: reading it runs no code.
        """
        from safetensors.torch import save_file

        layers: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name in self.layers:
            layer = self.layer(name)
            tensors |= {f"{name}.{part}": t for part, t in self.codec.tensors(layer).items()}
            if layer.bias is not None:
                # of its own: BERT's head shares it with what is around it
                tensors[f"{name}.bias"] = layer.bias.clone()
            layers[name] = self.codec.meta(layer)
        inside = tuple(f"{name}." for name in self.layers)
        seen: set[int] = set()
        for key, tensor in self.module.state_dict().items():
            # tied weights are written once, under their first name
            if not key.startswith(inside) and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                tensors[key] = tensor
        from bitgate.sources.architecture import config_text, task_of

        metadata = metadata_of(
            task_of(self.module),
            self.codec.format,
            self.recipe,
            layers,
            str(self.dtype).removeprefix("torch."),
            config_text(self.module),
        )
        save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata)


def replace(
    module: nn.Module,
    names: Mapping[str, Any],
    make: Callable[[nn.Module, Any], nn.Module],
    *,
    expendable: bool = False,
) -> nn.Module:
    """A copy of `module` that shares its tensors, with `make(layer, names[name])` in place of each
    layer that is named.

    An `expendable` module is used up: it is changed itself, and each of its layers is let go of as
    soon as there is another in its place, so that never more than one of them is there twice.
    """
    if expendable:
        for name, how in names.items():
            _exchange(module, name, make, how)
        return module
    copy = share(module)
    for name, how in names.items():
        put(copy, name, make(module.get_submodule(name), how))
    return copy


def _exchange(
    module: nn.Module, name: str, make: Callable[[nn.Module, Any], nn.Module], how: Any
) -> None:
    from bitgate.quantize.letting_go import let_go, trim

    layer = module.get_submodule(name)
    put(module, name, make(layer, how))
    let_go(left_over(layer, module))
    del layer
    trim()


def left_over(layer: nn.Module, module: nn.Module) -> list[Tensor]:
    """Those of a replaced layer's parameters that no part of the module has: an embedding may have
    a head's weight, and what stands in the layer's place its bias."""
    kept = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    return [tensor for tensor in layer.parameters() if tensor.data_ptr() not in kept]


def share(module: nn.Module) -> nn.Module:
    """A copy of the module tree whose tensors are the original's own."""
    from copy import deepcopy

    tensors = [*module.parameters(), *module.buffers()]
    return deepcopy(module, {id(tensor): tensor for tensor in tensors})


def put(module: nn.Module, name: str, layer: Any) -> None:
    """Put a layer where another one is."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


def read(
    path: Path, device: str, *codecs: Codec, model: type[ReplacedModel] = ReplacedModel
) -> ReplacedModel:
    """The model that `ReplacedModel.save` wrote, with bit-identical tensors; `codecs` are those
    that its layers may be of.

    Raises:
        QuantizeError: if the file is of another format or lacks a tensor.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from bitgate.sources.architecture import config_again, uninitialized

    try:
        opened = safe_open(path, "pt", device=device)
    except SafetensorError as error:
        raise QuantizeError(f"{path}: not a safetensors file: {error}") from None
    with opened as file:
        metadata = file.metadata() or {}
        codec = next((c for c in codecs if c.format == metadata.get("format")), None)
        if codec is None:
            expected = " or ".join(c.format for c in codecs)
            raise QuantizeError(
                f"{path}: expected format {expected}, got {metadata.get('format')!r}"
            )
        recipe = codec.recipe_type.model_validate_json(metadata["recipe"])
        layers: dict[str, dict[str, Any]] = json.loads(metadata["layers"])
        config = config_again(json.loads(metadata["config"]))
        # in memory of their own: in the file's they are not aligned, and convolutions and small
        # products then sum in another order
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    dtype = getattr(torch, metadata["dtype"])
    module = uninitialized(config, dtype, metadata.get("task", "causal-lm"))
    module.tie_weights()
    inside = tuple(f"{name}." for name in layers)
    taken: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
    for key in [key for key in tensors if key.startswith(inside)]:
        name, _, part = key.rpartition(".")
        taken[name][part] = tensors.pop(key)
    for name, meta in layers.items():
        bias = taken[name].pop("bias", None)
        if bias is None and module.get_submodule(name).bias is not None:
            raise QuantizeError(f"{path}: the file lacks {name}.bias")
        try:
            put(module, name, codec.rebuild(recipe, meta, taken[name], bias, dtype))
        except KeyError as error:
            raise QuantizeError(f"{path}: the file lacks {name}.{error.args[0]}") from None
    module.load_state_dict(tensors, strict=False, assign=True)
    head = head_of(module)
    if head is not None and head not in layers:
        module.tie_weights()
    _refuse_gaps(module, tensors, inside, path)
    module = module.to(device).eval().requires_grad_(False)
    return model(module, recipe, tuple(layers), codec, dtype)


def _refuse_gaps(
    module: nn.Module, tensors: Mapping[str, Tensor], inside: tuple[str, ...], path: Path
) -> None:
    """Every tensor of the model must have come from the file, directly or by a tie."""
    given = {tensor.data_ptr() for tensor in tensors.values()}
    for key, tensor in module.state_dict().items():
        if not key.startswith(inside) and tensor.data_ptr() not in given:
            raise QuantizeError(f"{path}: the file lacks {key}")
