"""Layers of method `bitsandbytes` in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from bitgate.catalog import Recipe
from bitgate.quantize.bitsandbytes_layers import NESTED_BLOCK, library, linear4bit, linear8bit
from bitgate.quantize.bitsandbytes_recipe import BLOCK, BitsAndBytesRecipe
from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.replaced import Codec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitgate.kernels.affine import Affine


class _Layers:
    """What both kinds of layers have in common."""

    recipe_type: type[Recipe] = BitsAndBytesRecipe
    called: ClassVar[str]  #: by the library
    alone: ClassVar[str]  #: why no other kernel takes them

    def layer_class(self) -> type[nn.Module]:
        found: type[nn.Module] = getattr(library().nn, self.called)
        return found

    def affine(self, layer: Any) -> Affine:
        raise QuantizeError(self.alone)


class _FourBit(_Layers):
    """FP4 and NF4: codes, maxima, and what codes stand for."""

    format = "bitgate-bitsandbytes-4bit-1"
    called = "Linear4bit"
    alone = "codes of FP4 and NF4 are not evenly spaced: no other kernel takes them"

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        state = layer.weight.quant_state
        parts = {"codes": layer.weight.data, "absmax": state.absmax, "map": state.code}
        if state.nested:
            parts |= {
                "offset": state.offset.reshape(1),
                "nested_absmax": state.state2.absmax,
                "nested_map": state.state2.code,
            }
        return parts

    def meta(self, layer: Any) -> dict[str, Any]:
        state = layer.weight.quant_state
        return {"shape": list(state.shape), "dtype": str(state.dtype).removeprefix("torch.")}

    def rebuild(
        self,
        recipe: BitsAndBytesRecipe,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> nn.Module:
        import torch
        from bitsandbytes.functional import QuantState

        nested = None
        if recipe.double:
            nested = QuantState(
                absmax=parts["nested_absmax"],
                blocksize=NESTED_BLOCK,
                code=parts["nested_map"],
                dtype=torch.float32,
            )
        state = QuantState(
            absmax=parts["absmax"],
            shape=torch.Size(meta["shape"]),
            code=parts["map"],
            blocksize=BLOCK,
            quant_type=recipe.type,
            dtype=getattr(torch, meta["dtype"]),
            offset=parts["offset"].reshape(()) if nested else None,
            state2=nested,
        )
        return linear4bit(parts["codes"], state, bias, dtype)

    def dequantize(self, layer: Any) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight


class _Int8(_Layers):
    """LLM.int8(): codes and a maximum of each row."""

    format = "bitgate-bitsandbytes-int8-1"
    called = "Linear8bitLt"
    alone = "LLM.int8() quantizes inputs as well: no other kernel does"

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        return {"codes": layer.state.CB, "absmax": layer.state.SCB}

    def meta(self, layer: Any) -> dict[str, Any]:
        return {}

    def rebuild(
        self,
        recipe: BitsAndBytesRecipe,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> nn.Module:
        return linear8bit(parts["codes"], parts["absmax"], bias, recipe.threshold)

    def dequantize(self, layer: Any) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_dequant

        weight: Tensor = int8_vectorwise_dequant(layer.state.CB, layer.state.SCB)
        return weight


FOUR_BIT, INT8 = _FourBit(), _Int8()


def codec_of(recipe: BitsAndBytesRecipe) -> Codec:
    """That of a recipe's layers."""
    return INT8 if recipe.type == "int8" else FOUR_BIT
