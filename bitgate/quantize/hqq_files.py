"""Layers of method `hqq` in a file, and as other kernels take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Affine, Grouping
from bitgate.quantize import QuantizeError
from bitgate.quantize.hqq_layers import library_config
from bitgate.quantize.hqq_recipe import HqqRecipe

if TYPE_CHECKING:
    import torch
    from hqq.core.quantize import HQQLinear
    from torch import Tensor, nn


def meta_of(grouping: Grouping) -> dict[str, Any]:
    """What a layer says of how it is cut into groups."""
    return {
        "nbits": grouping.bits,
        "group_size": grouping.group_size,
        "axis": grouping.axis,
        "shape": [grouping.out_features, grouping.in_features],
    }


def grouping_of(meta: Mapping[str, Any]) -> Grouping:
    """The groups again."""
    rows, columns = meta["shape"]
    return Grouping(rows, columns, meta["nbits"], meta["group_size"], meta["axis"])


class _Layers:
    """hqq's layers in a file of plain tensors; hqq's own format evaluates the name of a dtype."""

    format = "bitgate-hqq-2"
    recipe_type = HqqRecipe

    def layer_class(self) -> type[nn.Module]:
        from hqq.core.quantize import HQQLinear

        found: type[nn.Module] = HQQLinear
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        meta = layer.meta
        return {"codes": layer.W_q.data, "scale": meta["scale"], "zero": meta["zero"]}

    def meta(self, layer: Any) -> dict[str, Any]:
        return meta_of(grouping_of(layer.meta))

    def rebuild(
        self,
        recipe: HqqRecipe,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> HQQLinear:
        import torch
        from hqq.core.quantize import HQQLinear, Quantizer
        from torch import nn

        grouping = grouping_of(meta)
        rows, columns = meta["shape"]
        settings = library_config(grouping, recipe.solver)
        device = str(parts["codes"].device)
        layer = HQQLinear(None, settings, compute_dtype=dtype, device=device, initialize=False)
        packing = Quantizer.bit_to_packing[meta["nbits"]]
        layer.W_q = nn.Parameter(parts["codes"], requires_grad=False)
        layer.bias = bias
        layer.meta = {
            **meta,
            "shape": torch.Size(meta["shape"]),
            "scale": parts["scale"],
            "zero": parts["zero"],
            "packing": packing,
            "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
            "view_as_float": False,
            "quant_scale": False,
            "quant_zero": False,
            "compute_dtype": dtype,
        }
        layer.out_features, layer.in_features = rows, columns
        layer.ready = layer.in_gpu = True
        return layer

    def dequantize(self, layer: Any) -> Tensor:
        weight: Tensor = layer.dequantize()
        return weight

    def affine(self, layer: Any) -> Affine:
        """Unpacked; groups must not cross rows."""
        from hqq.core.quantize import Quantizer

        meta = layer.meta
        grouping = grouping_of(meta)
        rows, columns = meta["shape"]
        if grouping.axis != 1 or columns % grouping.group_size:
            raise QuantizeError(f"{grouping}: a group crosses rows")
        codes = Quantizer.unpack[meta["packing"]](layer.W_q)
        return Affine(
            grouping,
            # 3 bits pad rows
            codes=codes[: rows * columns // grouping.group_size].reshape(rows, columns),
            scale=meta["scale"].reshape(rows, -1),
            zero=meta["zero"].reshape(rows, -1),
        )


LAYERS = _Layers()
