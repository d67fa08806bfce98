"""Linear quantization, written out: rounding to an evenly spaced grid, nothing else.

Start with linear_math.py, which is the arithmetic. Around it: linear_recipe.py, what a recipe may
say; linear_sizes.py, what it comes to in bytes; linear_layers.py, the layers; linear_calibration.py
and batch_norm.py, what integers throughout need beforehand; linear_files.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate import kernels
from bitgate.kernels import KernelError, NotHereError
from bitgate.quantize import QuantizeError
from bitgate.quantize.calibration import calibration_windows
from bitgate.quantize.linear_files import INTEGERS, WEIGHTS
from bitgate.quantize.linear_recipe import INTEGER, LinearRecipe
from bitgate.quantize.linear_sizes import Plan, plans, predicted_bytes
from bitgate.quantize.replaced import ReplacedModel, read, replace
from bitgate.quantize.shapes import ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitgate.quantize.linear_calibration import Ranges
    from bitgate.quantize.linear_layers import DequantizedLayer, Form, IntegerLayer
    from bitgate.sources import LoadedModel

RECIPE = LinearRecipe
EXTRA = None
OWN_KERNELS = (kernels.REFERENCE, INTEGER)


def kernel(shapes: ModelShapes, recipe: LinearRecipe, device: str) -> str:
    """The kernel that serves every quantized layer on `device`; the kernels, where the head has
    other bits."""
    layers = plans(shapes, recipe)
    if recipe.activation_bits:
        if device.split(":")[0] != "cpu":
            raise NotHereError(f"recipe {recipe.name}: kernel {INTEGER} does not run on {device}")
        return INTEGER
    patches = [name for name, plan in layers.items() if plan.convolution]
    if not patches:
        groupings = {name: plan.grouping for name, plan in layers.items()}
        if recipe.mixed() and recipe.kernel == "auto":
            return kernels.choose_each(device, groupings)
        return kernels.choose(recipe.kernel, device, groupings)
    if recipe.kernel in ("auto", kernels.REFERENCE):
        return kernels.REFERENCE
    raise KernelError(f"kernel {recipe.kernel} cannot take {patches[0]}: it is a convolution")


def quantize(model: LoadedModel, recipe: LinearRecipe, dtype: torch.dtype) -> LinearModel:
    """Quantize the layers of a model as the recipe says; everything else is shared with it.

    Scales are kept in `dtype`.
    """
    batches: Sequence[Tensor] = ()
    if recipe.calibration is not None:
        from bitgate.quantize.linear_calibration import TOKENS_PER_BATCH

        text = calibration_windows(model, recipe, recipe.calibration)
        batches = text.split(max(1, TOKENS_PER_BATCH // text.shape[1]))
    return quantize_module(model.module, recipe, dtype, batches, expendable=model.expendable)


def quantize_module(
    module: nn.Module,
    recipe: LinearRecipe,
    dtype: torch.dtype,
    batches: Sequence[Tensor] = (),
    *,
    expendable: bool = False,
) -> LinearModel:
    """The same for any module; `batches` of its inputs are what activations are seen on, the first
    of them the largest. An `expendable` module is used up."""
    from bitgate.quantize import linear_calibration

    layers = plans(shapes_of(module), recipe)
    for name in layers:
        if reason := _unquantizable(module.get_submodule(name)):
            raise QuantizeError(f"recipe {recipe.name}: {name}: {reason}")
    module = _without_norms(module, layers)
    if recipe.activation_bits is None:
        made = replace(
            module,
            layers,
            lambda layer, plan: _dequantized(layer, plan, dtype),
            expendable=expendable,
        )
        return LinearModel(made, recipe, tuple(layers), WEIGHTS, dtype)
    try:
        seen = linear_calibration.calibrate(module, layers, batches, recipe.percentile)
    except QuantizeError as error:
        raise QuantizeError(f"recipe {recipe.name}: calibration: {error}") from None
    made = replace(
        module,
        {name: (plan, seen[name]) for name, plan in layers.items()},
        lambda layer, how: _integer(layer, how[0], how[1], recipe, dtype),
        expendable=expendable,
    )
    return LinearModel(made, recipe, tuple(layers), INTEGERS, dtype)


class LinearModel(ReplacedModel):
    """Where the head has other bits, several kernels may serve."""

    def kernel_of(self, name: str, kernel: str) -> str:
        if kernels.JOINT not in kernel:
            return kernel
        return kernels.serving(kernel, self.layer(name).form.grouping)


def _unquantizable(layer: Any) -> str | None:
    """What shapes do not tell; None if nothing is in the way."""
    if not layer.weight.isfinite().all():
        return "a weight is not finite"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode {layer.padding_mode!r}: only zeros are known"
    return None


def _without_norms(module: nn.Module, layers: Mapping[str, Plan]) -> nn.Module:
    """A copy of the module in which quantized convolutions do what a batch norm did after them."""
    from torch import nn

    from bitgate.quantize.batch_norm import folded

    found = {n: p.convolution.norm for n, p in layers.items() if p.convolution}
    norms = {name: norm for name, norm in found.items() if norm is not None}
    if not norms:
        return module
    module = replace(module, norms, lambda layer, norm: folded(layer, module.get_submodule(norm)))
    return replace(module, dict.fromkeys(norms.values()), lambda norm, _: nn.Identity())


def _form(layer: Any, plan: Plan) -> Form:
    from bitgate.quantize.linear_layers import Form

    convolution = None
    if plan.convolution is not None:
        keys = ("stride", "padding", "dilation", "groups")
        convolution = {key: getattr(layer, key) for key in keys}
    shape = tuple(layer.weight.shape)
    return Form(shape, plan.bits, plan.group_size, plan.symmetric, convolution)


def _dequantized(layer: Any, plan: Plan, dtype: torch.dtype) -> DequantizedLayer:
    from bitgate.quantize.linear_layers import DequantizedLayer
    from bitgate.quantize.linear_math import quantize_weight

    form = _form(layer, plan)
    weight = quantize_weight(layer.weight, plan.group_size, plan.bits, plan.symmetric, dtype)
    return DequantizedLayer(form, *form.packed(weight), _bias(layer))


def _integer(
    layer: Any, plan: Plan, seen: Ranges, recipe: LinearRecipe, dtype: torch.dtype
) -> IntegerLayer:
    import torch

    from bitgate.quantize.linear_layers import IntegerLayer
    from bitgate.quantize.linear_math import grid, quantize_weight

    assert recipe.activation_bits is not None
    bits = recipe.activation_bits
    form = _form(layer, plan)
    weight = quantize_weight(layer.weight, plan.group_size, plan.bits, plan.symmetric, dtype)

    def of(ends: tuple[Tensor, Tensor]) -> Tensor:
        spanned = grid(ends[0], ends[1], bits, symmetric=False, dtype=torch.float32)
        return torch.stack([spanned.scale, spanned.zero])

    return IntegerLayer(form, weight, _bias(layer), of(seen.input), of(seen.output), bits)


def _bias(layer: Any) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    return read(path, device, WEIGHTS, INTEGERS, model=LinearModel)


__all__ = [
    "EXTRA",
    "OWN_KERNELS",
    "RECIPE",
    "kernel",
    "load",
    "predicted_bytes",
    "quantize",
    "quantize_module",
]
