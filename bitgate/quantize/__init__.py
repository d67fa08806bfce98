"""Quantization methods, one file each, behind one protocol.

A method's file holds its `Recipe` subclass and, as functions, the protocol below. It is imported
during collection, so whatever is heavy is imported inside the functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitgate.catalog import Execution, Recipe
from bitgate.quantize.shapes import LinearShape, ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitgate.kernels.served import Served

#: name -> module; a new method is one file and one line here
METHODS: dict[str, str] = {
    "hqq": "bitgate.quantize.hqq",
}


class QuantizeError(RuntimeError):
    """A model cannot be quantized like this; the message names the recipe and the remedy."""


@dataclass(frozen=True)
class Size:
    """Bytes of a quantized model: its tensors in the saved file, and when served."""

    disk: int
    memory: int


class Quantized(Protocol):
    """A quantized model that can be saved, and served by a kernel."""

    recipe: Any

    def save(self, path: Path) -> None:
        """Write everything that serving needs into one file."""
        ...

    def serve(self, execution: Execution) -> Served:
        """Ready to answer, on the kernel that `execution` names."""
        ...


class Method(Protocol):
    """What a method's module offers."""

    RECIPE: type[Recipe]

    def quantize(self, module: nn.Module, recipe: Any, dtype: torch.dtype) -> Quantized:
        """Quantize a model, which stays as it is; unquantized tensors are shared with it."""
        ...

    def load(self, path: Path, device: str) -> Quantized:
        """Read back what `save` wrote; needs nothing else, not even the base."""
        ...

    def kernel(self, shapes: ModelShapes, recipe: Any, device: str) -> str:
        """The kernel that will serve the recipe on a device."""
        ...

    def predicted_bytes(self, shapes: ModelShapes, recipe: Any, kernel: str, element: int) -> Size:
        """The size from shapes alone; `element` is the bytes of an unquantized number."""
        ...


def method(name: str) -> Method:
    """The module of a method."""
    return import_module(METHODS[name])


def recipe_types() -> dict[str, type[Recipe]]:
    """Each method's recipe class, for reading the catalog."""
    return {name: method(name).RECIPE for name in METHODS}


__all__ = [
    "METHODS",
    "LinearShape",
    "Method",
    "ModelShapes",
    "QuantizeError",
    "Quantized",
    "Size",
    "method",
    "recipe_types",
    "shapes_of",
]
