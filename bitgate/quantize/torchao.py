"""8-bit weights, one scale a row, through the torchao library.

Source: `Int8WeightOnlyConfig` (torchao/quantization/quant_api.py of torchao 0.18): symmetric, a
code is weight / scale rounded, with scale = max |weight| of the row / 127.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from bitgate.catalog import LeftOut, Recipe, nearest
from bitgate.quantize import Extra, QuantizeError, Size
from bitgate.quantize.file_sizes import Stored
from bitgate.quantize.replaced import ReplacedModel, read, replace
from bitgate.quantize.replaced_sizes import StoredLayer, float_type, predicted_size
from bitgate.quantize.selection import SelectiveRecipe
from bitgate.quantize.shapes import LinearShape, ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitgate.kernels.affine import Affine
    from bitgate.sources import LoadedModel


class TorchaoRecipe(SelectiveRecipe):
    """Keys of a `[[recipe]]` with `method = "torchao"`: int8, weights only."""

    method: Literal["torchao"] = "torchao"
    bits: Literal[8] = 8
    group_size: LeftOut = None

    @field_validator("kernel")
    @classmethod
    def _kernel_exists(cls, name: str) -> str:
        if name not in ("auto", KERNEL):
            known = ("auto", KERNEL)
            raise ValueError(f"no kernel {name!r} serves torchao's layers; {nearest(name, known)}")
        return name


RECIPE = TorchaoRecipe
EXTRA = Extra("torchao", ("torchao",))
KERNEL = "torchao"
OWN_KERNELS = (KERNEL,)


def kernel(shapes: ModelShapes, recipe: TorchaoRecipe, device: str) -> str:
    """torchao's own, which takes any shape."""
    recipe.selected(shapes)
    return KERNEL


def layer_bytes(linear: LinearShape) -> int:
    """A byte for each weight; for each row a scale in fp32 and a zero point, a byte that is 0."""
    return linear.out_features * (linear.in_features + 4 + 1)


def predicted_bytes(shapes: ModelShapes, recipe: TorchaoRecipe, kernel: str, element: int) -> Size:
    """The size from shapes alone."""
    layers = recipe.selected(shapes)
    rest = shapes.left({linear.name for linear in layers})
    tensors = rest * element + shapes.fixed + sum(map(layer_bytes, layers))
    floats = float_type(shapes, element)
    return predicted_size(
        shapes,
        recipe,
        LAYERS.format,
        {linear.name: stored(linear, floats) for linear in layers},
        element,
        tensors=tensors,
        memory=tensors + shapes.transient,
    )


def stored(linear: LinearShape, floats: str) -> StoredLayer:
    """What is written of a layer."""
    rows, columns = linear.out_features, linear.in_features
    return StoredLayer(
        parts={
            "codes": Stored("I8", (rows, columns)),
            "scale": Stored("F32", (rows, 1)),
            "zero": Stored("I8", (rows, 1)),
        },
        meta={"block_size": [1, columns]},
        bias=floats if linear.bias else None,
    )


def warm() -> None:
    """Import what `quantize` needs."""
    import torchao.quantization  # noqa: F401


def quantize(model: LoadedModel, recipe: TorchaoRecipe, dtype: torch.dtype) -> TorchaoModel:
    """Give the layers that the recipe chooses weights of torchao's; everything else is shared."""
    layers = {linear.name: None for linear in recipe.selected(shapes_of(model.module))}
    module = replace(
        model.module, layers, lambda layer, _: _quantized(layer), expendable=model.expendable
    )
    return TorchaoModel(module, recipe, tuple(layers), LAYERS, dtype)


def _quantized(layer: Any) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    made = _linear(layer.weight, layer.bias)
    quantize_(made, Int8WeightOnlyConfig(set_inductor_config=False))
    return made


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    from torch import nn

    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.data, requires_grad=False)
    return layer.eval()


class TorchaoModel(ReplacedModel):
    """torchao's layers are torch's, with a weight of another class."""

    def serves(self, part: nn.Module) -> bool:
        from torchao.quantization import Int8Tensor

        return super().serves(part) and type(part.weight) is Int8Tensor


class _Layers:
    """Codes, scale and zero point of the weight."""

    format = "bitgate-torchao-1"
    recipe_type: type[Recipe] = TorchaoRecipe

    def layer_class(self) -> type[nn.Module]:
        from torch import nn

        found: type[nn.Module] = nn.Linear
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        weight = layer.weight
        return {"codes": weight.qdata, "scale": weight.scale, "zero": weight.zero_point}

    def meta(self, layer: Any) -> dict[str, Any]:
        return {"block_size": list(layer.weight.block_size)}

    def rebuild(
        self,
        recipe: TorchaoRecipe,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> nn.Module:
        from torchao.quantization import Int8Tensor

        weight = Int8Tensor(
            parts["codes"], parts["scale"], meta["block_size"], dtype, zero_point=parts["zero"]
        )
        return _linear(weight, bias)

    def dequantize(self, layer: Any) -> Tensor:
        weight: Tensor = layer.weight.dequantize()
        return weight

    def affine(self, layer: Any) -> Affine:
        raise QuantizeError("torchao's weights are served by torchao")


LAYERS = _Layers()


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    return read(path, device, LAYERS, model=TorchaoModel)
