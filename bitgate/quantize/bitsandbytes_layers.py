"""bitsandbytes' layers as its library makes them, and as it packs them anew on some CPUs."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from bitgate.quantize.bitsandbytes_recipe import BLOCK, BitsAndBytesRecipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NESTED_BLOCK = 256  #: maxima of blocks that share one again, in double quantization


def four_bit(recipe: BitsAndBytesRecipe, dtype: torch.dtype, layer: Any) -> nn.Module:
    """FP4 or NF4 of a layer; it computes in `dtype`."""
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(
        layer.weight.data.contiguous(),
        blocksize=BLOCK,
        compress_statistics=recipe.double,
        quant_type=recipe.type,
    )
    return linear4bit(codes, state, layer.bias, dtype)


def linear4bit(codes: Tensor, state: Any, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    """The library's layer for a quantized weight; it never packs it anew."""
    nn4 = library().nn
    rows, columns = state.shape
    layer = nn4.Linear4bit(
        columns,
        rows,
        bias=bias is not None,
        compute_dtype=dtype,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        device="meta",
    )
    layer.weight = nn4.Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        module=layer,
        bnb_quantized=True,
    )
    layer.quant_state = state
    layer.bias = _parameter(bias)
    # packing overwrites what was quantized by what was rounded: that is for served copies only
    layer.support_avx512bf16_for_cpu = False
    return layer.eval()


def int8(recipe: BitsAndBytesRecipe, layer: Any) -> nn.Module:
    """LLM.int8() of a layer."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant

    # as the library does: weights are rounded to fp16 first
    codes, maxima, _ = int8_vectorwise_quant(layer.weight.data.contiguous().to(torch.float16))
    return linear8bit(codes, maxima, layer.bias, recipe.threshold)


def linear8bit(codes: Tensor, maxima: Tensor, bias: Tensor | None, threshold: float) -> nn.Module:
    """The library's layer for codes int8 [N, K] and a maximum of each row, float32 [N]."""
    nn8 = library().nn
    rows, columns = codes.shape
    layer = nn8.Linear8bitLt(
        columns,
        rows,
        bias=bias is not None,
        has_fp16_weights=False,
        threshold=threshold,
        device="meta",
    )
    layer.weight = nn8.Int8Params(
        codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=maxima
    )
    layer.init_8bit_state()  # else the first use would
    layer.bias = _parameter(bias)
    return layer.eval()


def _parameter(bias: Tensor | None) -> nn.Parameter | None:
    from torch import nn

    return None if bias is None else nn.Parameter(bias.data, requires_grad=False)


def packed(layer: Any) -> nn.Module:
    """A copy that the library has packed, as it does when a layer is used for the first time."""
    import torch

    state = copy.copy(layer.weight.quant_state)  # packing sets its attributes
    made: Any = linear4bit(layer.weight.data, state, layer.bias, layer.compute_dtype)
    del made.support_avx512bf16_for_cpu
    fresh = library().nn.Linear4bit(1, 1, device="meta")
    made.support_avx512bf16_for_cpu = fresh.support_avx512bf16_for_cpu
    with torch.inference_mode():
        made(torch.zeros(1, layer.in_features, dtype=layer.compute_dtype))
    return made


def is_packed(layer: Any) -> bool:
    """Whether the library has."""
    state = getattr(layer.weight, "quant_state", None)  # int8 has none
    return bool(getattr(state, "packing_format_for_cpu", False))


def library() -> Any:
    """bitsandbytes, without what it says of every product (inputs are rounded to fp16) and of a
    kernel that it would fetch from a hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes
