"""How method `gptq` cuts each layer of a model into groups, and what that comes to in bytes; from
shapes alone.

Packing rules: gptqmodel/nn_modules/qlinear of gptqmodel 7.7.
"""

from __future__ import annotations

import math

from bitgate import kernels
from bitgate.kernels.affine import Grouping
from bitgate.quantize import QuantizeError, Size
from bitgate.quantize.file_sizes import Stored
from bitgate.quantize.gptq_files import LAYERS, WORD
from bitgate.quantize.gptq_recipe import KERNEL, GptqRecipe
from bitgate.quantize.replaced_sizes import StoredLayer, predicted_size
from bitgate.quantize.selection import block_of
from bitgate.quantize.shapes import LinearShape, ModelShapes


def groupings(shapes: ModelShapes, recipe: GptqRecipe) -> dict[str, Grouping]:
    """How every layer that the recipe quantizes is cut into groups, by name; the last group of a
    row is smaller where the group size does not divide the inputs."""
    out = {}
    for linear in recipe.selected(shapes):
        grouping = Grouping(
            linear.out_features, linear.in_features, recipe.bits, recipe.group_size, axis=1
        )
        if reason := unpackable(grouping):
            raise QuantizeError(
                f"recipe {recipe.name}: {linear.name}: {grouping}: {reason}; "
                "give `layers` without this one"
            )
        if block_of(linear.name) is None:
            raise QuantizeError(
                f"recipe {recipe.name}: {linear.name}: gptqmodel quantizes layers of repeated "
                "blocks only; give `layers` without this one"
            )
        out[linear.name] = grouping
    return out


def unpackable(grouping: Grouping) -> str | None:
    """Why gptqmodel cannot pack a layer grouped like this; None if it can."""
    for what, count in (("inputs", grouping.in_features), ("outputs", grouping.out_features)):
        if count % WORD:
            return f"the number of {what} must be a multiple of {WORD}"
    return None


def layer_bytes(grouping: Grouping, bias: bool) -> int:
    """Of a layer in a file: codes, a zero of as many bits and a float16 scale for every group, the
    group of every input as int32, and a float16 bias."""
    rows, columns, groups = grouping.out_features, grouping.in_features, _groups(grouping)
    codes = (columns + groups) * rows * grouping.bits // 8
    return codes + 2 * groups * rows + 4 * columns + (2 * rows if bias else 0)


def working_bytes(grouping: Grouping) -> int:
    """What such a layer keeps beside them in memory to unpack itself: shifts, and (but for 3 bits)
    unpacked zeros of one byte, of two at 8 bits, and the group of every input as int64."""
    if grouping.bits == 3:
        return 4 * 3 * 12
    shifts = 4 * WORD // grouping.bits
    zeros = _groups(grouping) * grouping.out_features * (2 if grouping.bits == 8 else 1)
    return shifts + zeros + 8 * grouping.in_features


def _groups(grouping: Grouping) -> int:
    return math.ceil(grouping.in_features / grouping.group_size)


def predicted_bytes(shapes: ModelShapes, recipe: GptqRecipe, kernel: str, element: int) -> Size:
    """The size from shapes alone; the head is left as it is."""
    quantized = groupings(shapes, recipe)
    rest = shapes.others
    tensors = memory = 0
    layers = {}
    for linear in shapes.linears:
        grouping = quantized.get(linear.name)
        if grouping is not None:
            layers[linear.name] = stored(grouping, linear.bias)
            tensors += layer_bytes(grouping, linear.bias)
            memory += _served_bytes(grouping, linear, kernel)
        elif not (linear.name == shapes.head and shapes.tied):
            rest += linear.out_features * linear.in_features
            rest += linear.out_features if linear.bias else 0
    return predicted_size(
        shapes,
        recipe,
        LAYERS.format,
        layers,
        element,
        tensors=tensors + rest * element + shapes.fixed,
        memory=memory + rest * element + shapes.fixed + shapes.transient,
    )


def stored(grouping: Grouping, bias: bool) -> StoredLayer:
    """What is written of a layer, which `layer_bytes` counts."""
    rows, columns, groups = grouping.out_features, grouping.in_features, _groups(grouping)
    return StoredLayer(
        parts={
            "qweight": Stored("I32", (columns * grouping.bits // WORD, rows)),
            "qzeros": Stored("I32", (groups, rows * grouping.bits // WORD)),
            "scales": Stored("F16", (groups, rows)),
            "g_idx": Stored("I32", (columns,)),
        },
        meta={},
        bias="F16" if bias else None,
    )


def _served_bytes(grouping: Grouping, linear: LinearShape, kernel: str) -> int:
    if kernel == KERNEL:
        return layer_bytes(grouping, linear.bias) + working_bytes(grouping)
    bias = 2 * linear.out_features if linear.bias else 0
    return kernels.kernel(kernel).packed_bytes(grouping) + bias
