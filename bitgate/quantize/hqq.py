"""Half-quadratic quantization through the hqq library.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023).
hqq_recipe.py is what a recipe may say; hqq_sizes.py, what it comes to in bytes; hqq_layers.py, how
the library is called; hqq_files.py, its layers in a file and for kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitgate import kernels
from bitgate.kernels.affine import Grouping
from bitgate.quantize.hqq_files import LAYERS, grouping_of
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.hqq_sizes import groupings, predicted_bytes
from bitgate.quantize.replaced import ReplacedModel, read, replace
from bitgate.quantize.shapes import ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitgate.sources import LoadedModel

RECIPE = HqqRecipe
EXTRA = None
OWN_KERNELS = (kernels.REFERENCE,)


def kernel(shapes: ModelShapes, recipe: HqqRecipe, device: str) -> str:
    """The kernel that serves every quantized layer on `device`; where layers differ, by a plan or
    in the head, the kernels that do."""
    layers = groupings(shapes, recipe)
    if recipe.mixed() and recipe.kernel == "auto":
        return kernels.choose_each(device, layers)
    return kernels.choose(recipe.kernel, device, layers)


def warm() -> None:
    """Import what `quantize` needs."""
    import hqq.core.quantize  # noqa: F401


def quantize(model: LoadedModel, recipe: HqqRecipe, dtype: torch.dtype) -> ReplacedModel:
    """Quantize the layers of a model as the recipe says; everything else is shared with it."""
    from bitgate.quantize.hqq_layers import quantized

    module = model.module
    device = str(next(module.parameters()).device)
    layers = groupings(shapes_of(module), recipe)

    def make(layer: nn.Module, grouping: Grouping) -> nn.Module:
        return quantized(layer, grouping, recipe.solver, dtype, device)

    made = replace(module, layers, make, expendable=model.expendable)
    return HqqModel(made, recipe, tuple(layers), LAYERS, dtype)


class HqqModel(ReplacedModel):
    """Where layers differ, several kernels may serve."""

    def kernel_of(self, name: str, kernel: str) -> str:
        if kernels.JOINT not in kernel:
            return kernel
        return kernels.serving(kernel, grouping_of(self.layer(name).meta))


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    made = read(path, device, LAYERS)
    return HqqModel(made.module, made.recipe, made.layers, made.codec, made.dtype)


__all__ = [
    "EXTRA",
    "OWN_KERNELS",
    "RECIPE",
    "kernel",
    "load",
    "predicted_bytes",
    "quantize",
]
