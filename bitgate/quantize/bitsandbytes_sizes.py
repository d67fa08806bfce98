"""What method `bitsandbytes` makes of each layer comes to in bytes; from shapes alone.

Rules: functional.py and nn/modules.py of bitsandbytes 0.50.2.
"""

from __future__ import annotations

import math

from bitgate.quantize import Size
from bitgate.quantize.bitsandbytes_files import codec_of
from bitgate.quantize.bitsandbytes_layers import NESTED_BLOCK
from bitgate.quantize.bitsandbytes_recipe import BLOCK, PACKED, BitsAndBytesRecipe
from bitgate.quantize.file_sizes import FLOATS, Stored
from bitgate.quantize.replaced_sizes import StoredLayer, float_type, predicted_size
from bitgate.quantize.shapes import LinearShape, ModelShapes


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
    return predicted_size(
        shapes,
        recipe,
        codec_of(recipe).format,
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
