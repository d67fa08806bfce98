"""LLM.int8(), FP4 and NF4 through the bitsandbytes library.

Sources: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale"
(2022); Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), where NF4 and
double quantization are from. Sizes: functional.py and nn/modules.py of bitsandbytes 0.50.2.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bitgate.catalog import Execution, Recipe, nearest
from bitgate.kernels import KernelError, NotHereError
from bitgate.kernels.served import TorchServed
from bitgate.quantize import Extra, QuantizeError, Size
from bitgate.quantize.file_sizes import FLOATS, Stored
from bitgate.quantize.replaced import Codec, ReplacedModel, put, read, replace, share
from bitgate.quantize.replaced_sizes import StoredLayer, float_type, predicted_size
from bitgate.quantize.selection import SelectiveRecipe
from bitgate.quantize.shapes import LinearShape, ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitgate.kernels.affine import Affine
    from bitgate.sources import LoadedModel

BLOCK = 64  #: weights that share a maximum, in 4 bits
NESTED_BLOCK = 256  #: of those maxima that share one again, in double quantization
#: how many rows, and weights in a row, the library's packed 4-bit kernel takes
PACKED_ROWS, PACKED_COLUMNS = 32, BLOCK


class BitsAndBytesRecipe(SelectiveRecipe):
    """Keys of a `[[recipe]]` with `method = "bitsandbytes"`; its `bits` follow from `type`."""

    method: Literal["bitsandbytes"] = "bitsandbytes"
    type: Literal["int8", "nf4", "fp4"]
    double: bool = Field(False, description="quantize the maxima of 4-bit blocks too")
    threshold: Annotated[float, Field(ge=0)] = Field(
        6.0, description="int8: inputs beyond it stay in floating point; 0: none do"
    )

    crossed: ClassVar[tuple[str, ...]] = ("type", "double")

    @model_validator(mode="before")
    @classmethod
    def _bits_follow(cls, data: Any) -> Any:
        """For gates and tables, which ask every recipe."""
        implied = {"int8": (8, None), "nf4": (4, BLOCK), "fp4": (4, BLOCK)}
        kind = data.get("type") if isinstance(data, dict) else None
        if kind not in implied:  # the error is the type's
            return data
        fixed = dict(zip(("bits", "group_size"), implied[kind], strict=True))
        for key, value in fixed.items():
            if data.get(key, value) != value:
                raise ValueError(f"{key}: type {kind!r} has {value}; leave the key out")
        return {**data, **fixed}

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> BitsAndBytesRecipe:
        if self.type == "int8" and self.double:
            raise ValueError("double: for nf4 and fp4 only; int8 has one maximum a row")
        if self.type != "int8" and "threshold" in self.model_fields_set:
            raise ValueError("threshold: for int8 only; 4-bit layers compute in floating point")
        known = ("auto", KERNEL, *(() if self.type == "int8" else (PACKED,)))
        if self.kernel not in known:
            raise ValueError(
                f"kernel: {self.kernel!r} does not serve {self.type}; {nearest(self.kernel, known)}"
            )
        return self

    def marks(self) -> Iterator[str]:
        if self.double:
            yield "double"
        if self.type == "int8" and self.threshold != 6.0:
            yield f"t{self.threshold:g}"
        yield from super().marks()

    @property
    def name(self) -> str:
        """`bitsandbytes-nf4-double`."""
        return "-".join((self.method, self.type, *self.marks()))


RECIPE = BitsAndBytesRecipe
EXTRA = Extra("bitsandbytes", ("bitsandbytes",))
#: 4 bits are dequantized for each product; int8 multiplies integers
KERNEL = "bitsandbytes"
#: what the library does instead on a CPU with AVX512-BF16: it packs the weight anew when it is
#: first used, with maxima rounded to bfloat16, and computes in bfloat16 without dequantizing it
PACKED = "bitsandbytes-avx512bf16"
OWN_KERNELS = (PACKED, KERNEL)


# --- sizes and kernels ---------------------------------------------------------------------


def code_bytes(linear: LinearShape, recipe: BitsAndBytesRecipe) -> int:
    """Bytes of the codes: one a weight, or two weights in one."""
    weights = linear.out_features * linear.in_features
    return weights if recipe.type == "int8" else math.ceil(weights / 2)


def statistics_bytes(linear: LinearShape, recipe: BitsAndBytesRecipe) -> int:
    """Bytes of what a layer needs beside its codes, in fp32 where nothing else is said.

    int8: a maximum of each row. 4 bits: one of each block, and the 16 values that codes stand for.
    Double quantization: a byte for each block; their maxima, of each 256, the mean that was taken
    off them, and the 256 values that those bytes stand for.
    """
    if recipe.type == "int8":
        return 4 * linear.out_features
    blocks = math.ceil(linear.out_features * linear.in_features / BLOCK)
    if not recipe.double:
        return 4 * (blocks + 16)
    return blocks + 4 * (math.ceil(blocks / NESTED_BLOCK) + 1 + 256 + 16)


def packed_bytes(linear: LinearShape, recipe: BitsAndBytesRecipe) -> int:
    """Bytes of a layer that the library has packed: two codes in a byte, a maximum of each block in
    bfloat16, and the 16 values (and what double quantization took off, which stays behind)."""
    weights = linear.out_features * linear.in_features
    return weights // 2 + 2 * (weights // BLOCK) + 4 * 16 + (4 if recipe.double else 0)


def refuses(linear: LinearShape) -> str | None:
    """Why the packed kernel cannot take a layer; None if it can."""
    if linear.out_features % PACKED_ROWS:
        return f"the number of outputs must be a multiple of {PACKED_ROWS}"
    if linear.in_features % PACKED_COLUMNS:
        return f"the number of inputs must be a multiple of {PACKED_COLUMNS}"
    return None


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


@cache
def has_avx512_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has it, as Linux tells; no on any other system."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "avx512_bf16" in flags.split()


def predicted_bytes(
    shapes: ModelShapes, recipe: BitsAndBytesRecipe, kernel: str, element: int
) -> Size:
    """The size from shapes alone."""
    layers = recipe.selected(shapes)
    rest = shapes.left({linear.name for linear in layers}) * element + shapes.fixed
    tensors = memory = rest + sum(
        code_bytes(linear, recipe) + statistics_bytes(linear, recipe) for linear in layers
    )
    if kernel == PACKED:
        memory = rest + sum(packed_bytes(linear, recipe) for linear in layers)
    floats = float_type(shapes, element)
    codec: Codec = INT8 if recipe.type == "int8" else FOUR_BIT
    return predicted_size(
        shapes,
        recipe,
        codec.format,
        {linear.name: stored(linear, recipe, floats) for linear in layers},
        element,
        tensors=tensors,
        memory=memory + shapes.transient,
    )


def stored(linear: LinearShape, recipe: BitsAndBytesRecipe, floats: str) -> StoredLayer:
    """What is written of a layer, which `code_bytes` and `statistics_bytes` count."""
    rows, columns = linear.out_features, linear.in_features
    bias = floats if linear.bias else None
    if recipe.type == "int8":
        parts = {"codes": Stored("I8", (rows, columns)), "absmax": Stored("F32", (rows,))}
        return StoredLayer(parts, {}, bias)
    blocks = math.ceil(rows * columns / BLOCK)
    parts = {
        "codes": Stored("U8", (code_bytes(linear, recipe), 1)),
        "absmax": Stored("U8" if recipe.double else "F32", (blocks,)),
        "map": Stored("F32", (16,)),
    }
    if recipe.double:
        parts |= {
            "offset": Stored("F32", (1,)),
            "nested_absmax": Stored("F32", (math.ceil(blocks / NESTED_BLOCK),)),
            "nested_map": Stored("F32", (256,)),
        }
    dtype = next(name for name, kind in FLOATS.items() if kind == floats)
    return StoredLayer(parts, {"shape": [rows, columns], "dtype": dtype}, bias)


# --- quantizing ----------------------------------------------------------------------------


def warm() -> None:
    """Import what `quantize` needs."""
    _library()


def quantize(
    model: LoadedModel, recipe: BitsAndBytesRecipe, dtype: torch.dtype
) -> BitsAndBytesModel:
    """Replace the layers that the recipe chooses by the library's own, made from the model's
    weights where they are; 4-bit layers compute in `dtype`."""
    layers = {linear.name: linear for linear in recipe.selected(shapes_of(model.module))}
    codec: Codec = INT8 if recipe.type == "int8" else FOUR_BIT
    make = partial(_int8, recipe) if recipe.type == "int8" else partial(_four_bit, recipe, dtype)
    module = replace(
        model.module, layers, lambda layer, _: make(layer), expendable=model.expendable
    )
    return BitsAndBytesModel(module, recipe, tuple(layers), codec, dtype)


def _four_bit(recipe: BitsAndBytesRecipe, dtype: torch.dtype, layer: Any) -> nn.Module:
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(
        layer.weight.data.contiguous(),
        blocksize=BLOCK,
        compress_statistics=recipe.double,
        quant_type=recipe.type,
    )
    return _linear4bit(codes, state, layer.bias, dtype)


def _linear4bit(codes: Tensor, state: Any, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    """The library's layer for a quantized weight; it never packs it anew."""
    nn4 = _library().nn
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


def _int8(recipe: BitsAndBytesRecipe, layer: Any) -> nn.Module:
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant

    # as the library does: weights are rounded to fp16 first
    codes, maxima, _ = int8_vectorwise_quant(layer.weight.data.contiguous().to(torch.float16))
    return _linear8bit(codes, maxima, layer.bias, recipe.threshold)


def _linear8bit(codes: Tensor, maxima: Tensor, bias: Tensor | None, threshold: float) -> nn.Module:
    nn8 = _library().nn
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


def _library() -> Any:
    """bitsandbytes, without what it says of every product (inputs are rounded to fp16) and of a
    kernel that it would fetch from a hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


# --- serving -------------------------------------------------------------------------------


class BitsAndBytesModel(ReplacedModel):
    """Serves packed copies of its layers where the kernel is the packed one."""

    def serve(self, execution: Execution) -> TorchServed:
        module, packed = self.module, execution.kernel == PACKED
        if packed:
            module = share(self.module)
            for name in self.layers:
                put(module, name, _packed(self.layer(name)))
        found = sum(self.serves(part) and _is_packed(part) == packed for part in module.modules())
        return _Served(module, execution, found, len(self.layers))


class _Served(TorchServed):
    def memory_bytes(self) -> int:
        """Without the note that LLM.int8() leaves of which inputs of the last product were
        outliers."""
        for part in self.module.modules():
            if isinstance(part, _library().nn.Linear8bitLt):
                part.state.idx = None
        return super().memory_bytes()


def _packed(layer: Any) -> nn.Module:
    """A copy that the library has packed, as it does when a layer is used for the first time."""
    import torch

    state = copy.copy(layer.weight.quant_state)  # packing sets its attributes
    made: Any = _linear4bit(layer.weight.data, state, layer.bias, layer.compute_dtype)
    del made.support_avx512bf16_for_cpu
    fresh = _library().nn.Linear4bit(1, 1, device="meta")
    made.support_avx512bf16_for_cpu = fresh.support_avx512bf16_for_cpu
    with torch.inference_mode():
        made(torch.zeros(1, layer.in_features, dtype=layer.compute_dtype))
    return made


def _is_packed(layer: Any) -> bool:
    state = getattr(layer.weight, "quant_state", None)  # int8 has none
    return bool(getattr(state, "packing_format_for_cpu", False))


# --- files ---------------------------------------------------------------------------------


class _FourBit:
    """FP4 and NF4: codes, maxima, and what codes stand for."""

    format = "bitgate-bitsandbytes-4bit-1"
    recipe_type: type[Recipe] = BitsAndBytesRecipe

    def layer_class(self) -> type[nn.Module]:
        found: type[nn.Module] = _library().nn.Linear4bit
        return found

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
        return _linear4bit(parts["codes"], state, bias, dtype)

    def dequantize(self, layer: Any) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight

    def affine(self, layer: Any) -> Affine:
        raise QuantizeError(
            "codes of FP4 and NF4 are not evenly spaced: no other kernel takes them"
        )


class _Int8:
    """LLM.int8(): codes and a maximum of each row."""

    format = "bitgate-bitsandbytes-int8-1"
    recipe_type: type[Recipe] = BitsAndBytesRecipe

    def layer_class(self) -> type[nn.Module]:
        found: type[nn.Module] = _library().nn.Linear8bitLt
        return found

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
        return _linear8bit(parts["codes"], parts["absmax"], bias, recipe.threshold)

    def dequantize(self, layer: Any) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_dequant

        weight: Tensor = int8_vectorwise_dequant(layer.state.CB, layer.state.SCB)
        return weight

    def affine(self, layer: Any) -> Affine:
        raise QuantizeError("LLM.int8() quantizes inputs as well: no other kernel does")


FOUR_BIT, INT8 = _FourBit(), _Int8()


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    _library()
    return read(path, device, FOUR_BIT, INT8, model=BitsAndBytesModel)
