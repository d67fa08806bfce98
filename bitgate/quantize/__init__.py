"""Quantization methods, one file each, behind one protocol.

A method's file holds its `Recipe` subclass and, as functions, the protocol below; where it would be
long, METHOD_recipe.py, METHOD_sizes.py, METHOD_layers.py and METHOD_files.py beside it hold parts.
It is imported during collection, so whatever is heavy is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitgate import kernels
from bitgate.catalog import Execution, Recipe
from bitgate.kernels.extra import Extra
from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.shapes import LinearShape, ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bitgate.kernels.served import Served
    from bitgate.sources import LoadedModel

#: name -> module; a new method is one file and one line here
METHODS: dict[str, str] = {
    "bitsandbytes": "bitgate.quantize.bitsandbytes",
    "checkpoint": "bitgate.quantize.checkpoint",
    "gguf": "bitgate.quantize.gguf",
    "gptq": "bitgate.quantize.gptq",
    "hqq": "bitgate.quantize.hqq",
    "linear": "bitgate.quantize.linear",
    "torchao": "bitgate.quantize.torchao",
}


@dataclass(frozen=True)
class Size:
    """Bytes of a quantized model: of the saved file, and when served."""

    disk: int
    memory: int
    header: int = 0  #: of the file, all that is no tensor; 0 where it is not known and not counted

    @property
    def tensors(self) -> int:
        """Of the tensors in the file."""
        return self.disk - self.header


class Quantized(Protocol):
    """A quantized model that can be saved, and served by a kernel."""

    @property
    def recipe(self) -> Any:
        """How it was made."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and weight of each quantized layer, dequantized, one at a time."""
        ...

    def save(self, path: Path) -> None:
        """Write everything that serving needs: one file, or a folder with its weights."""
        ...

    def serve(self, execution: Execution) -> Served:
        """Ready to answer, on the kernel that `execution` names."""
        ...


class Method(Protocol):
    """What a method's module offers."""

    RECIPE: type[Recipe]
    #: what has to be installed for it; None for nothing
    EXTRA: Extra | None
    #: the kernels that it brings along: of its own layers, or what its library runs in their place
    OWN_KERNELS: tuple[str, ...]

    def quantize(self, model: LoadedModel, recipe: Any, dtype: torch.dtype) -> Quantized:
        """Quantize a model, which stays as it is unless it is `expendable`; unquantized tensors are
        shared with it.

        `model.tokenizer` and the datasets that a recipe names are there for methods that
        calibrate.
        """
        ...

    def load(self, path: Path, device: str) -> Quantized:
        """Read back what `save` wrote; needs nothing else, not even the base."""
        ...

    def kernel(self, shapes: ModelShapes, recipe: Any, device: str) -> str:
        """The kernel that will serve the recipe on a device.

        Raises:
            QuantizeError, KernelError: where the recipe cannot be made or served; it is asked
                during collection, so it must not need torch.
        """
        ...

    def predicted_bytes(
        self, shapes: ModelShapes, recipe: Any, kernel: str, element: int
    ) -> Size | None:
        """The size from shapes alone; `element` is the bytes of an unquantized number. None where
        it does not follow from shapes."""
        ...


def method(name: str) -> Method:
    """The module of a method."""
    return import_module(METHODS[name])


def warm(name: str) -> None:
    """Import the libraries that a method quantizes with, as that is no part of what quantizing
    takes: its module's own `warm`, if it has one."""
    own: Callable[[], None] | None = getattr(method(name), "warm", None)
    if own is not None:
        own()


def own_kernels(name: str) -> tuple[str, ...]:
    """The kernels that a method brings along."""
    return method(name).OWN_KERNELS


def kernel_names() -> tuple[str, ...]:
    """Of every kernel that may serve: packed ones, those that methods bring along, and what serves
    where layers need several."""
    brought = [kernel for name in METHODS for kernel in own_kernels(name)]
    return tuple(dict.fromkeys([*kernels.NAMES, *brought, *kernels.joint_names()]))


def recipe_types() -> dict[str, type[Recipe]]:
    """Each method's recipe class, for reading the catalog."""
    return {name: method(name).RECIPE for name in METHODS}


__all__ = [
    "METHODS",
    "Extra",
    "LinearShape",
    "Method",
    "ModelShapes",
    "QuantizeError",
    "Quantized",
    "Size",
    "kernel_names",
    "method",
    "own_kernels",
    "recipe_types",
    "shapes_of",
    "warm",
]
