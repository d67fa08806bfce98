"""Linear quantization, written out: rounding to an evenly spaced grid, nothing else.

Start with linear_math.py, which is the arithmetic. Around it: linear_recipe.py, what a recipe may
say; linear_form.py, what becomes of a layer; linear_sizes.py, what that comes to in bytes;
linear_layers.py, the layers; linear_calibration.py
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
from bitgate.quantize.linear_form import Form
from bitgate.quantize.linear_recipe import INTEGER, LinearRecipe
from bitgate.quantize.linear_sizes import Plan, plans, predicted_bytes
from bitgate.quantize.replaced import ReplacedModel, read, replace
from bitgate.quantize.shapes import ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitgate.quantize.linear_calibration import Ranges
    from bitgate.quantize.linear_layers import DequantizedLayer, IntegerLayer
    from bitgate.quantize.linear_math import QuantizedWeight
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
    convolutions = [name for name, plan in layers.items() if plan.convolution]
    if not convolutions:
        groupings = {name: plan.form.grouping for name, plan in layers.items()}
        if recipe.mixed() and recipe.kernel == "auto":
            return kernels.choose_each(device, groupings)
        return kernels.choose(recipe.kernel, device, groupings)
    if recipe.kernel in ("auto", kernels.REFERENCE):
        return kernels.REFERENCE
    raise KernelError(f"kernel {recipe.kernel} cannot take {convolutions[0]}: it is a convolution")


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
        _refuse_others(name, module.get_submodule(name), recipe)
    module = _without_norms(module, layers, expendable=expendable)
    if recipe.activation_bits is None:
        # a weight is read when its turn has come, not before: of those that are mapped from a file
        # one at a time is in memory
        def make(layer: nn.Module, how: tuple[str, Plan]) -> nn.Module:
            name, plan = how
            _refuse_infinities(name, layer, recipe)
            return _dequantized(layer, plan.form, dtype)

        named = {name: (name, plan) for name, plan in layers.items()}
        made = replace(module, named, make, expendable=expendable)
        return LinearModel(made, recipe, tuple(layers), WEIGHTS, dtype)
    for name in layers:
        _refuse_infinities(name, module.get_submodule(name), recipe)
    try:
        seen = linear_calibration.calibrate(module, layers, batches, recipe.percentile)
    except QuantizeError as error:
        raise QuantizeError(f"recipe {recipe.name}: calibration: {error}") from None
    made = replace(
        module,
        {name: (plan.form, seen[name]) for name, plan in layers.items()},
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


def _refuse_others(name: str, layer: nn.Module, recipe: LinearRecipe) -> None:
    """Convolutions that compute something else than their weight and settings say, such as timm's
    Conv2dSame, which pads by the size of its input."""
    from torch import nn

    kind = type(layer)
    if isinstance(layer, nn.Conv2d) and (
        kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward
    ):
        raise QuantizeError(
            f"recipe {recipe.name}: {name}: {kind.__name__} computes in a way of its own, and "
            "not as plain convolutions do; choose others with `layers`"
        )
    if (mode := getattr(layer, "padding_mode", "zeros")) != "zeros":
        raise QuantizeError(
            f"recipe {recipe.name}: {name}: padding_mode {mode!r}: only zeros are known"
        )


def _refuse_infinities(name: str, layer: Any, recipe: LinearRecipe) -> None:
    if not layer.weight.isfinite().all():
        raise QuantizeError(f"recipe {recipe.name}: {name}: a weight is not finite")


def _without_norms(module: nn.Module, layers: Mapping[str, Plan], *, expendable: bool) -> nn.Module:
    """A copy of the module, or an `expendable` one itself, in which quantized convolutions do what
    a batch norm did after them."""
    from torch import nn

    from bitgate.quantize.batch_norm import folded

    found = {n: p.convolution.norm for n, p in layers.items() if p.convolution}
    norms = {name: norm for name, norm in found.items() if norm is not None}
    if not norms:
        return module
    module = replace(
        module,
        norms,
        lambda layer, norm: folded(layer, module.get_submodule(norm)),
        expendable=expendable,
    )
    gone = dict.fromkeys(norms.values())
    return replace(module, gone, lambda norm, _: nn.Identity(), expendable=expendable)


def _dequantized(layer: Any, form: Form, dtype: torch.dtype) -> DequantizedLayer:
    from bitgate.quantize.linear_layers import DequantizedLayer, packed

    return DequantizedLayer(form, *packed(form, _weight(layer, form, dtype)), _bias(layer))


def _integer(
    layer: Any, form: Form, seen: Ranges, recipe: LinearRecipe, dtype: torch.dtype
) -> IntegerLayer:
    import torch

    from bitgate.quantize.linear_layers import IntegerLayer
    from bitgate.quantize.linear_math import grid

    assert recipe.activation_bits is not None
    bits = recipe.activation_bits

    def of(ends: tuple[Tensor, Tensor]) -> Tensor:
        spanned = grid(ends[0], ends[1], bits, symmetric=False, dtype=torch.float32)
        return torch.stack([spanned.scale, spanned.zero])

    weight = _weight(layer, form, dtype)
    return IntegerLayer(form, weight, _bias(layer), of(seen.input), of(seen.output), bits)


def _weight(layer: Any, form: Form, dtype: torch.dtype) -> QuantizedWeight:
    from bitgate.quantize.linear_math import quantize_weight

    return quantize_weight(layer.weight, form.group_size, form.bits, form.symmetric, dtype)


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
