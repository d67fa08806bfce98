"""What method `linear` does to each layer of a model, and what that comes to in bytes; from shapes
alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitgate import kernels
from bitgate.quantize import QuantizeError, Size
from bitgate.quantize.bit_packing import packed_size
from bitgate.quantize.file_sizes import Stored
from bitgate.quantize.linear_files import INTEGERS, WEIGHTS
from bitgate.quantize.linear_form import Form
from bitgate.quantize.linear_math import INT32, largest_sum
from bitgate.quantize.linear_recipe import INTEGER, LinearRecipe
from bitgate.quantize.replaced_sizes import StoredLayer, float_type, predicted_size
from bitgate.quantize.shapes import ConvolutionShape, LinearShape, ModelShapes


@dataclass(frozen=True)
class Plan:
    """How one layer is quantized."""

    form: Form
    convolution: ConvolutionShape | None = None


def plans(shapes: ModelShapes, recipe: LinearRecipe) -> dict[str, Plan]:
    """How every layer that the recipe quantizes is, by name."""
    chosen: list[tuple[LinearShape | ConvolutionShape, int]] = [
        (layer, recipe.bits) for layer in recipe.selected_with_convolutions(shapes)
    ]
    if recipe.head is not None:
        if shapes.head is None:
            raise QuantizeError(f"recipe {recipe.name}: head: the model has no linear output head")
        chosen += [(s, recipe.head) for s in shapes.linears if s.name == shapes.head]
    if recipe.group_size:
        _refuse_groups_across_outputs([layer for layer, _ in chosen], recipe.group_size, recipe)
    return {layer.name: _plan(layer, bits, recipe) for layer, bits in chosen}


def _refuse_groups_across_outputs(
    layers: Sequence[LinearShape | ConvolutionShape], size: int, recipe: LinearRecipe
) -> None:
    crossing = next((layer for layer in layers if layer.in_features % size), None)
    if crossing is None:
        return
    common = math.gcd(*(layer.in_features for layer in layers))
    remedy = 'give granularity = "channel"'
    if common > 1:  # which sizes do is near to see; which is nearest, `misfits` says
        remedy = f"all inputs are multiples of {common}"
    raise QuantizeError(
        f"recipe {recipe.name}: group_size: {size} does not divide the "
        f"{crossing.in_features} inputs of {crossing.name}; {remedy}"
    )


def _plan(layer: LinearShape | ConvolutionShape, bits: int, recipe: LinearRecipe) -> Plan:
    outputs, inputs = layer.out_features, layer.in_features
    size = recipe.group_size or (inputs if recipe.granularity == "channel" else outputs * inputs)
    if recipe.activation_bits:
        largest = largest_sum(inputs, recipe.activation_bits, bits, recipe.symmetric)
        if largest > INT32:
            raise QuantizeError(
                f"recipe {recipe.name}: {layer.name}: a sum over {inputs} inputs may reach "
                f"{largest}, which no int32 holds; give fewer bits"
            )
    if isinstance(layer, LinearShape):
        return Plan(Form((outputs, inputs), bits, size, recipe.symmetric))
    height, width = layer.patches.size
    shape = outputs, inputs // (height * width), height, width
    return Plan(Form(shape, bits, size, recipe.symmetric, layer.patches.arguments), layer)


def predicted_bytes(shapes: ModelShapes, recipe: LinearRecipe, kernel: str, element: int) -> Size:
    """The size from shapes alone. A tied head is one tensor with the embedding until it is
    quantized; then the embedding stays beside it."""
    quantized = plans(shapes, recipe)
    rest, biases, fixed = shapes.others, 0, shapes.fixed
    for linear in shapes.linears:
        if linear.name not in quantized and not (linear.name == shapes.head and shapes.tied):
            rest += linear.out_features * linear.in_features
        if linear.bias and linear.name not in quantized:
            rest += linear.out_features
        elif linear.bias:
            biases += linear.out_features
    for plan in quantized.values():
        if (convolution := plan.convolution) is not None:  # which `others` counts
            rest -= plan.form.codes + (plan.form.outputs if convolution.bias else 0)
            rest -= convolution.norm_elements
            fixed -= convolution.norm_fixed
            biases += plan.form.outputs if convolution.bias or convolution.norm else 0
    rest_bytes = fixed + rest * element + biases * (4 if recipe.activation_bits else element)
    ends = 2 * 2 * 4 if recipe.activation_bits else 0  # scale and zero of inputs and of outputs
    forms = {name: plan.form for name, plan in quantized.items()}
    packed = sum(_packed_bytes(form, element) + ends for form in forms.values())
    if kernel == INTEGER:
        served = sum(_integer_bytes(form, element) + ends for form in forms.values())
    else:
        served = sum(_served_bytes(form, kernel, element) for form in forms.values())
    tensors, memory = rest_bytes + packed, rest_bytes + served + shapes.transient
    floats, integers = float_type(shapes, element), recipe.activation_bits is not None
    biased = {linear.name: linear.bias for linear in shapes.linears}
    convolutions = [plan.convolution for plan in quantized.values() if plan.convolution]
    biased |= {c.name: c.bias or c.norm is not None for c in convolutions}
    return predicted_size(
        shapes,
        recipe,
        (INTEGERS if integers else WEIGHTS).format,
        {name: stored(form, integers, floats, biased[name]) for name, form in forms.items()},
        element,
        tensors=tensors,
        memory=memory,
    )


def stored(form: Form, integers: bool, floats: str, bias: bool) -> StoredLayer:
    """What is written of a layer; `integers` says that inputs and outputs are some, too."""
    parts = {
        "codes": Stored("U8", (packed_size(form.codes, form.bits),)),
        "scale": Stored(floats, (form.groups,)),
    }
    if not form.symmetric:
        parts["zero"] = Stored("U8", (packed_size(form.groups, form.bits),))
    if integers:
        parts |= {"input": Stored("F32", (2,)), "output": Stored("F32", (2,))}
    return StoredLayer(parts, vars(form), ("I32" if integers else floats) if bias else None)


def _packed_bytes(form: Form, element: int) -> int:
    """Codes, a scale for every group and, unless symmetric, its zero, which is a code too."""
    zeros = 0 if form.symmetric else packed_size(form.groups, form.bits)
    return packed_size(form.codes, form.bits) + form.groups * element + zeros


def _served_bytes(form: Form, kernel: str, element: int) -> int:
    """In memory, by whichever of several kernels serves such a layer."""
    serving = kernels.REFERENCE
    if form.convolution is None:
        serving = kernels.serving(kernel, form.grouping)
    if serving == kernels.REFERENCE:
        return _packed_bytes(form, element)
    return kernels.kernel(serving).packed_bytes(form.grouping)


def _integer_bytes(form: Form, element: int) -> int:
    """A byte for every code and zero; scale, and a multiplier in two int64."""
    return form.codes + form.groups * (element + 2 * 8 + (0 if form.symmetric else 1))
