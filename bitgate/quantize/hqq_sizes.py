"""How method `hqq` cuts each layer of a model into groups, and what that comes to in bytes; from
shapes alone.

Packing rules: hqq/core/bitpack.py and hqq/core/quantize.py of hqq 0.2.8.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache

from bitgate import kernels
from bitgate.kernels.affine import Grouping
from bitgate.quantize import QuantizeError, Size
from bitgate.quantize.file_sizes import Stored
from bitgate.quantize.hqq_files import LAYERS, meta_of
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.plans import Widths, widths
from bitgate.quantize.replaced_sizes import StoredLayer, float_type, predicted_size
from bitgate.quantize.shapes import LinearShape, ModelShapes


def groupings(shapes: ModelShapes, recipe: HqqRecipe) -> dict[str, Grouping]:
    """How every layer that the recipe quantizes is cut into groups, by name."""
    out: dict[str, Grouping] = {}
    alike: dict[tuple[int, int, Widths], Grouping] = {}  # collection asks of thousands of cells
    for linear, width in _chosen(shapes, recipe):
        key = linear.out_features, linear.in_features, width
        grouping = alike.get(key)
        if grouping is None:
            grouping = Grouping(linear.out_features, linear.in_features, *width, recipe.axis)
            if reason := unpackable(grouping):
                raise QuantizeError(f"recipe {recipe.name}: {linear.name}: {grouping}: {reason}")
            alike[key] = grouping
        out[linear.name] = grouping
    return out


def _chosen(shapes: ModelShapes, recipe: HqqRecipe) -> Iterator[tuple[LinearShape, Widths]]:
    """The layers that the recipe quantizes, and to what; the head last."""
    if recipe.plan is not None:
        linears = {linear.name: linear for linear in shapes.linears}
        for name, found in widths(recipe.plan, shapes).items():
            yield linears[name], found
        return
    assert recipe.bits is not None
    assert recipe.group_size is not None
    width = Widths(recipe.bits, recipe.group_size)
    for linear in recipe.selected(shapes):
        yield linear, width
    if recipe.head is not None:
        if shapes.head is None:
            raise QuantizeError(f"recipe {recipe.name}: head: the model has no linear output head")
        head = next(linear for linear in shapes.linears if linear.name == shapes.head)
        yield head, Widths(recipe.head, recipe.group_size)


@cache
def unpackable(grouping: Grouping) -> str | None:
    """Why hqq cannot pack a layer grouped like this; None if it can."""
    elements = grouping.out_features * grouping.in_features
    if elements % grouping.group_size:
        return "the group size does not divide the number of weights"
    rows, _ = _packed_rows(grouping)
    per_byte = {4: 2, 2: 4, 1: 8}.get(grouping.bits, 1)
    if rows % per_byte:
        return f"{rows} rows cannot be packed {per_byte} to a byte"
    return None


def _packed_rows(grouping: Grouping) -> tuple[int, int]:
    """The matrix that hqq packs along its rows: [groups, group size] or its transpose."""
    groups = grouping.out_features * grouping.in_features // grouping.group_size
    size = grouping.group_size
    return (groups, size) if grouping.axis == 1 else (size, groups)


def code_bytes(grouping: Grouping) -> int:
    """Bytes of the packed codes: 8, 4, 2 and 1 bit fill bytes, 3 bits go ten to an int32."""
    rows, columns = _packed_rows(grouping)
    if grouping.bits == 3:
        return math.ceil(rows / 10) * columns * 4
    return rows * columns * grouping.bits // 8


def layer_bytes(grouping: Grouping, element: int) -> int:
    """Packed codes, and a scale and a zero of `element` bytes each for every group."""
    groups = grouping.out_features * grouping.in_features // grouping.group_size
    return code_bytes(grouping) + 2 * groups * element


@cache
def stored(grouping: Grouping, floats: str, bias: bool) -> StoredLayer:
    """What is written of a layer; `floats` is the type of scale and zero."""
    rows, columns = _packed_rows(grouping)
    codes = Stored("U8", (rows * grouping.bits // 8, columns))
    if grouping.bits == 3:
        codes = Stored("I32", (math.ceil(rows / 10), columns))
    groups = (rows, 1) if grouping.axis == 1 else (1, columns)
    return StoredLayer(
        parts={"codes": codes, "scale": Stored(floats, groups), "zero": Stored(floats, groups)},
        meta=meta_of(grouping),
        bias=floats if bias else None,
    )


def predicted_bytes(shapes: ModelShapes, recipe: HqqRecipe, kernel: str, element: int) -> Size:
    """The size from shapes alone."""
    quantized = groupings(shapes, recipe)
    tensors = memory = shapes.left(quantized) * element + shapes.fixed
    floats, biased = float_type(shapes, element), {x.name: x.bias for x in shapes.linears}
    layers = {name: stored(g, floats, biased[name]) for name, g in quantized.items()}
    for grouping, count in Counter(quantized.values()).items():
        tensors += count * layer_bytes(grouping, element)
        served = kernels.serving(kernel, grouping)
        if served == kernels.REFERENCE:
            memory += count * layer_bytes(grouping, element)
        else:
            memory += count * kernels.kernel(served).packed_bytes(grouping)
    memory += shapes.transient
    if shapes.file is not None:  # hqq copies a bias, also one that something else goes on sharing
        copied = [
            x for x in shapes.linears if x.name in quantized.keys() & shapes.file.shared_biases
        ]
        memory += sum(linear.out_features for linear in copied) * element
    return predicted_size(
        shapes, recipe, LAYERS.format, layers, element, tensors=tensors, memory=memory
    )
