"""Layers of method `linear` in a file, and as other kernels take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Affine
from bitgate.quantize import QuantizeError
from bitgate.quantize.linear_form import Form
from bitgate.quantize.linear_recipe import LinearRecipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Parts = Mapping[str, Tensor]
    Packed = tuple[Tensor, Tensor, Tensor | None]  #: codes, scale and, unless symmetric, zero


class _Weights:
    """Layers of which only the weight is quantized."""

    format = "bitgate-linear-1"
    recipe_type = LinearRecipe

    def layer_class(self) -> type[nn.Module]:
        from bitgate.quantize.linear_layers import DequantizedLayer

        return DequantizedLayer

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        from bitgate.quantize.linear_layers import packed

        codes, scale, zero = packed(layer.form, layer.quantized_weight())
        return {"codes": codes, "scale": scale, **({} if zero is None else {"zero": zero})}

    def meta(self, layer: Any) -> dict[str, Any]:
        from dataclasses import asdict

        return asdict(layer.form)

    def rebuild(
        self,
        recipe: LinearRecipe,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> nn.Module:
        form = Form(**{**meta, "shape": tuple(meta["shape"])})
        packed = parts["codes"], parts["scale"], None if form.symmetric else parts["zero"]
        return self._layer(form, packed, bias, recipe, parts)

    def _layer(
        self, form: Form, packed: Packed, bias: Tensor | None, recipe: LinearRecipe, parts: Parts
    ) -> nn.Module:
        from bitgate.quantize.linear_layers import DequantizedLayer

        return DequantizedLayer(form, *packed, bias)

    def dequantize(self, layer: Any) -> Tensor:
        weight: Tensor = layer.weight
        return weight

    def affine(self, layer: Any) -> Affine:
        """One scale and zero per row and group; one for the whole weight is repeated."""
        weight = layer.quantized_weight()
        outputs = weight.shape[0]
        rows = outputs, -1
        scale, zero = (
            part.reshape(rows) if part.numel() > 1 else part.expand(outputs, 1)
            for part in (weight.grid.scale, weight.grid.zero)
        )
        return Affine(layer.form.grouping, weight.codes.reshape(rows), scale, zero)


class _Integers(_Weights):
    """Layers that are integers from input to output."""

    format = "bitgate-linear-integer-1"

    def layer_class(self) -> type[nn.Module]:
        from bitgate.quantize.linear_layers import IntegerLayer

        return IntegerLayer

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        return {**super().tensors(layer), "input": layer.input, "output": layer.output}

    def _layer(
        self, form: Form, packed: Packed, bias: Tensor | None, recipe: LinearRecipe, parts: Parts
    ) -> nn.Module:
        from bitgate.quantize.linear_layers import IntegerLayer, unpacked

        assert recipe.activation_bits is not None
        return IntegerLayer(
            form,
            unpacked(form, *packed),
            bias,
            parts["input"],
            parts["output"],
            recipe.activation_bits,
        )

    def affine(self, layer: Any) -> Affine:
        raise QuantizeError("its inputs and outputs are integers too; no other kernel takes it")


WEIGHTS, INTEGERS = _Weights(), _Integers()
