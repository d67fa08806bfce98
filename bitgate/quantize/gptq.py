"""GPTQ through the gptqmodel library: each layer's weights are rounded one input after another, and
those not rounded yet make up for the error, as seen on calibration text.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022). gptq_recipe.py is what a recipe may say; gptq_sizes.py, what it comes to in
bytes; gptq_layers.py, how the library is called; gptq_files.py, its layers in a file and for
kernels.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate import kernels
from bitgate.quantize import Extra
from bitgate.quantize.calibration import calibration_windows
from bitgate.quantize.gptq_files import LAYERS
from bitgate.quantize.gptq_layers import library, solved
from bitgate.quantize.gptq_recipe import KERNEL, GptqRecipe
from bitgate.quantize.gptq_sizes import groupings, predicted_bytes
from bitgate.quantize.replaced import ReplacedModel, put, read, replace
from bitgate.quantize.shapes import ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitgate.sources import LoadedModel

RECIPE = GptqRecipe
EXTRA = Extra("gptq", ("gptqmodel",))
OWN_KERNELS = (KERNEL,)


def kernel(shapes: ModelShapes, recipe: GptqRecipe, device: str) -> str:
    """The kernel that serves every quantized layer on `device`; else the library's own."""
    layers = groupings(shapes, recipe)
    if recipe.kernel == KERNEL:
        return KERNEL
    chosen = kernels.choose(recipe.kernel, device, layers)
    return KERNEL if chosen == kernels.REFERENCE else chosen


def warm() -> None:
    """Import what `quantize` needs."""
    with library():
        import gptqmodel.models.auto  # noqa: F401


def quantize(model: LoadedModel, recipe: GptqRecipe, dtype: torch.dtype) -> ReplacedModel:
    """Quantize the layers of a model as the recipe says; everything else is shared with it."""
    layers = groupings(shapes_of(model.module), recipe)
    text = calibration_windows(model, recipe, recipe.calibration).cpu()
    device = next(model.module.parameters()).device
    made = solved(to_work_on(model, layers), recipe, layers, text)
    parts = {name: LAYERS.tensors(made.get_submodule(name)) for name in layers}
    biases = {name: made.get_submodule(name).bias for name in layers}
    del made
    gc.collect()

    def make(layer: nn.Module, name: str) -> nn.Module:
        # plain tensors: those that were made in inference mode cannot be told apart by version
        own = {key: tensor.clone().to(device) for key, tensor in parts.pop(name).items()}
        bias = biases.pop(name)
        bias = None if bias is None else bias.clone().to(device)
        return LAYERS.rebuild(recipe, {}, own, bias, dtype)

    names = {name: name for name in layers}
    module = replace(model.module, names, make, expendable=model.expendable)
    return _warm(ReplacedModel(module, recipe, tuple(layers), LAYERS, dtype))


def to_work_on(model: LoadedModel, layers: Iterable[str]) -> nn.Module:
    """The model on the CPU and in memory of its own, for a library that changes the weights that it
    is given.

    An expendable one hands its `layers` over, of which nothing is left in it: only the rest is
    there twice, and one layer while it is handed over.
    """
    from copy import deepcopy

    from torch import nn

    if not model.expendable:
        return deepcopy(model.module).cpu()
    taken: dict[str, nn.Module] = {}

    def hand_over(layer: nn.Module, name: str) -> nn.Module:
        taken[name] = deepcopy(layer).cpu()
        return nn.Identity()

    rest = replace(model.module, {name: name for name in layers}, hand_over, expendable=True)
    copy = deepcopy(rest).cpu()
    for name, layer in taken.items():
        put(copy, name, layer)
    return copy


def _warm(model: ReplacedModel) -> ReplacedModel:
    """Let each layer unpack itself once: what it then keeps is part of what the model takes."""
    for name in model.layers:
        model.layer(name).dequantize_weight()
    return model


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    return _warm(read(path, device, LAYERS))


__all__ = [
    "EXTRA",
    "OWN_KERNELS",
    "RECIPE",
    "kernel",
    "load",
    "predicted_bytes",
    "quantize",
]
