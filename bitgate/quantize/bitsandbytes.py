"""LLM.int8(), FP4 and NF4 through the bitsandbytes library.

Sources: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale"
(2022); Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), where NF4 and
double quantization are from. bitsandbytes_recipe.py is what a recipe may say;
bitsandbytes_sizes.py, what it comes to in bytes; bitsandbytes_layers.py, the library's layers;
bitsandbytes_files.py, what of them is in a file.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.catalog import Execution
from bitgate.kernels import KernelError, NotHereError
from bitgate.kernels.served import TorchServed
from bitgate.quantize import Extra
from bitgate.quantize.bitsandbytes_files import FOUR_BIT, INT8, codec_of
from bitgate.quantize.bitsandbytes_layers import four_bit, int8, is_packed, library, packed
from bitgate.quantize.bitsandbytes_recipe import BLOCK, KERNEL, PACKED, BitsAndBytesRecipe
from bitgate.quantize.bitsandbytes_sizes import predicted_bytes
from bitgate.quantize.replaced import ReplacedModel, put, read, replace, share
from bitgate.quantize.shapes import LinearShape, ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch

    from bitgate.sources import LoadedModel

RECIPE = BitsAndBytesRecipe
EXTRA = Extra("bitsandbytes", ("bitsandbytes",))
OWN_KERNELS = (PACKED, KERNEL)
#: how many rows, and weights in a row, the library's packed 4-bit kernel takes
PACKED_ROWS, PACKED_COLUMNS = 32, BLOCK


def kernel(shapes: ModelShapes, recipe: BitsAndBytesRecipe, device: str) -> str:
    """The packed kernel where it is the library's choice and takes every layer, else its plain
    one."""
    layers = recipe.selected(shapes)
    if recipe.type == "int8" or recipe.kernel == KERNEL:
        return KERNEL
    able = device == "cpu" and has_avx512_bf16()
    if recipe.kernel == "auto":
        return PACKED if able and not any(map(refuses, layers)) else KERNEL
    for linear in layers:
        if reason := refuses(linear):
            raise KernelError(f"kernel {PACKED} cannot take {linear.name}: {reason}")
    if not able:
        raise NotHereError(f"kernel {PACKED} runs on CPUs with AVX512-BF16 only")
    return PACKED


def refuses(linear: LinearShape) -> str | None:
    """Why the packed kernel cannot take a layer; None if it can."""
    if linear.out_features % PACKED_ROWS:
        return f"the number of outputs must be a multiple of {PACKED_ROWS}"
    if linear.in_features % PACKED_COLUMNS:
        return f"the number of inputs must be a multiple of {PACKED_COLUMNS}"
    return None


@cache
def has_avx512_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has it, as Linux tells; no on any other system."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "avx512_bf16" in flags.split()


def warm() -> None:
    """Import what `quantize` needs."""
    library()


def quantize(
    model: LoadedModel, recipe: BitsAndBytesRecipe, dtype: torch.dtype
) -> BitsAndBytesModel:
    """Replace the layers that the recipe chooses by the library's own, made from the model's
    weights where they are; 4-bit layers compute in `dtype`."""
    layers = {linear.name: linear for linear in recipe.selected(shapes_of(model.module))}
    make = partial(int8, recipe) if recipe.type == "int8" else partial(four_bit, recipe, dtype)
    module = replace(
        model.module, layers, lambda layer, _: make(layer), expendable=model.expendable
    )
    return BitsAndBytesModel(module, recipe, tuple(layers), codec_of(recipe), dtype)


class BitsAndBytesModel(ReplacedModel):
    """Serves packed copies of its layers where the kernel is the packed one."""

    def serve(self, execution: Execution) -> TorchServed:
        module, anew = self.module, execution.kernel == PACKED
        if anew:
            module = share(self.module)
            for name in self.layers:
                put(module, name, packed(self.layer(name)))
        found = sum(self.serves(part) and is_packed(part) == anew for part in module.modules())
        return _Served(module, execution, found, len(self.layers))


class _Served(TorchServed):
    def memory_bytes(self) -> int:
        """Without the note that LLM.int8() leaves of which inputs of the last product were
        outliers."""
        for part in self.module.modules():
            if isinstance(part, library().nn.Linear8bitLt):
                part.state.idx = None
        return super().memory_bytes()


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    library()
    return read(path, device, FOUR_BIT, INT8, model=BitsAndBytesModel)


__all__ = [
    "EXTRA",
    "OWN_KERNELS",
    "RECIPE",
    "kernel",
    "load",
    "predicted_bytes",
    "quantize",
]
