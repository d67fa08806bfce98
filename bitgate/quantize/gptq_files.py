"""Layers of method `gptq` in a file, and as other kernels take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Affine, Grouping
from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.gptq_layers import library
from bitgate.quantize.gptq_recipe import GptqRecipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WORD = 32  #: bits of an integer that codes are packed into
#: what the library calls the tensors of a layer
PARTS = ("qweight", "qzeros", "scales", "g_idx")


class _Layers:
    """The library's layers in a file of plain tensors, packed as it packs them."""

    format = "bitgate-gptq-1"
    recipe_type = GptqRecipe

    def layer_class(self) -> type[nn.Module]:
        with library():
            from gptqmodel.nn_modules.qlinear.torch import TorchLinear

        found: type[nn.Module] = TorchLinear
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        return {part: getattr(layer, part) for part in PARTS}

    def meta(self, layer: Any) -> dict[str, Any]:
        return {}

    def rebuild(
        self,
        recipe: GptqRecipe,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> nn.Module:
        layer: Any = self.layer_class()(
            bits=recipe.bits,
            group_size=recipe.group_size,
            sym=recipe.symmetric,
            desc_act=False,
            in_features=len(parts["g_idx"]),
            out_features=parts["scales"].shape[1],
            register_buffers=False,
        )
        for part in PARTS:
            layer.register_buffer(part, parts[part])
        layer.register_buffer("bias", bias)
        layer.qzero_format(format=2)
        # else it would compile the unpacking of each layer at its first call
        layer.optimized = True
        layer.post_init()
        return layer.eval()

    def dequantize(self, layer: Any) -> Tensor:
        weight: Tensor = layer.dequantize_weight().T
        return weight

    def affine(self, layer: Any) -> Affine:
        """Unpacked; groups must be of neighbours and of the same size."""
        columns, rows = layer.in_features, layer.out_features
        grouping = Grouping(rows, columns, layer.bits, layer.group_size, axis=1)
        if columns % layer.group_size or not _neighbours(layer.g_idx, layer.group_size):
            raise QuantizeError(f"{grouping}: its groups are not of so many neighbours each")
        zeros = unpacked(layer.qzeros.T, layer.bits)[:rows]
        return Affine(
            grouping,
            codes=unpacked(layer.qweight, layer.bits).T.contiguous(),
            scale=layer.scales.T,
            zero=zeros.to(layer.scales.dtype),
        )


LAYERS = _Layers()


def _neighbours(group_of: Tensor, size: int) -> bool:
    import torch

    return bool(torch.equal(group_of, torch.arange(len(group_of), device=group_of.device) // size))


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes uint8 [count, columns] of int32 words [count * bits / 32, columns], in which they
    follow each other down each column without gaps, lowest bits first: `bits` words hold 32."""
    import torch

    at = torch.arange(WORD, device=words.device) * bits
    blocks = words.long().bitwise_and(2**WORD - 1).unflatten(0, (-1, bits))
    after = torch.cat([blocks[:, 1:], torch.zeros_like(blocks[:, :1])], 1)
    pairs = (blocks | after << WORD)[:, at // WORD]
    codes = pairs >> (at % WORD)[:, None] & 2**bits - 1
    return codes.flatten(0, 1).to(torch.uint8)
