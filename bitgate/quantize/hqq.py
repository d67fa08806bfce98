"""Half-quadratic quantization through the hqq library.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023);
packing rules: hqq/core/bitpack.py and hqq/core/quantize.py of hqq 0.2.8.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bitgate import kernels
from bitgate.catalog import Dataset, Plan, Recipe, Rule, nearest
from bitgate.kernels.affine import Affine, Grouping
from bitgate.quantize import QuantizeError, Size
from bitgate.quantize.file_sizes import Stored
from bitgate.quantize.plans import Widths, widths
from bitgate.quantize.replaced import ReplacedModel, read, replace
from bitgate.quantize.replaced_sizes import StoredLayer, float_type, predicted_size
from bitgate.quantize.selection import SelectiveRecipe, no_flag
from bitgate.quantize.shapes import LinearShape, ModelShapes, shapes_of

if TYPE_CHECKING:
    import torch
    from hqq.core.quantize import HQQLinear
    from torch import Tensor, nn

    from bitgate.sources import LoadedModel


Bits = Annotated[Literal[8, 4, 3, 2, 1], BeforeValidator(no_flag)]
BITS = (8, 4, 3, 2, 1)
GROUPS_OF = 8  #: a group's size is a multiple of it


class HqqRecipe(SelectiveRecipe):
    """Keys of a `[[recipe]]` with `method = "hqq"`."""

    method: Literal["hqq"] = "hqq"
    bits: Bits | None = None
    group_size: Annotated[int, Field(gt=0, multiple_of=GROUPS_OF)] | None = None
    plan: Plan | None = Field(
        None, description="instead of both: which layers get how many; TOML gives its name"
    )
    axis: Annotated[Literal[0, 1], BeforeValidator(no_flag)] = Field(
        1, description="1 groups along the inputs, 0 along the outputs"
    )
    head: Bits | None = Field(None, description="bits of the output head; default: left alone")
    solver: bool = Field(True, description="false: round to nearest, without optimization")

    crossed: ClassVar[tuple[str, ...]] = ("bits", "group_size", "axis", "plan")
    planned_by: ClassVar[tuple[str, ...]] = ("plan",)

    @model_validator(mode="after")
    def _bits_or_a_plan(self) -> HqqRecipe:
        if self.plan is None:
            for key in ("bits", "group_size"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key}: this key is missing; `plan` would stand for it")
            return self
        for key in ("bits", "group_size", "axis", "head", *SelectiveRecipe.model_fields):
            given = getattr(self, key)
            if key not in Recipe.model_fields.keys() - {"bits", "group_size"} and (
                given != type(self).model_fields[key].get_default()
            ):
                raise ValueError(f"{key}: leave it out, the plan says which layers get what")
        _check_plan(self.plan)
        return self

    def calibration_texts(self) -> Iterator[Dataset]:
        yield from super().calibration_texts()
        if self.plan and self.plan.searched_on:
            yield self.plan.searched_on

    @field_validator("kernel")
    @classmethod
    def _kernel_exists(cls, name: str) -> str:
        known = ("auto", *kernels.NAMES)
        if name not in known:
            raise ValueError(f"no kernel is called {name!r}; {nearest(name, known)}")
        return name

    def mixed(self) -> bool:
        return super().mixed() or self.head not in (None, self.bits)

    def marks(self) -> Iterator[str]:
        if self.plan:
            yield f"plan-{self.plan.name}"
        if self.axis == 0:
            yield "axis0"
        yield from self.selection()
        if self.head:
            yield f"head{self.head}"
        if not self.solver:
            yield "rtn"
        yield from Recipe.marks(self)


def _check_plan(plan: Plan) -> None:
    """Plans are of no method; which bits and groups there are, a method knows."""
    rules = [(f"rule {n}", rule) for n, rule in enumerate(plan.rules, 1)]
    entries: list[tuple[str, Plan | Rule]] = [("", plan)]
    entries += [(f"{where}: ", rule) for where, rule in rules]
    numbers = [(f"{where}bits", entry.bits) for where, entry in entries]
    for key, bits in [*numbers, ("head", plan.head)]:
        if bits is not None and bits not in BITS:
            there = ", ".join(map(str, BITS))
            raise ValueError(f"{plan.place}: {key}: hqq has no {bits} bits; there is {there}")
    for where, entry in entries:
        if entry.group_size is not None and entry.group_size % GROUPS_OF:
            raise ValueError(
                f"{plan.place}: {where}group_size: {entry.group_size} is no multiple of {GROUPS_OF}"
            )


RECIPE = HqqRecipe
EXTRA = None
OWN_KERNELS = (kernels.REFERENCE,)


# --- sizes ---------------------------------------------------------------------------------


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
        meta=_meta(grouping),
        bias=floats if bias else None,
    )


def _meta(grouping: Grouping) -> dict[str, Any]:
    return {
        "nbits": grouping.bits,
        "group_size": grouping.group_size,
        "axis": grouping.axis,
        "shape": [grouping.out_features, grouping.in_features],
    }


def kernel(shapes: ModelShapes, recipe: HqqRecipe, device: str) -> str:
    """The kernel that serves every quantized layer on `device`; where layers differ, by a plan or
    in the head, the kernels that do."""
    layers = groupings(shapes, recipe)
    if recipe.mixed() and recipe.kernel == "auto":
        return kernels.choose_each(device, layers)
    return kernels.choose(recipe.kernel, device, layers)


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
    return predicted_size(
        shapes, recipe, LAYERS.format, layers, element, tensors=tensors, memory=memory
    )


# --- quantizing ----------------------------------------------------------------------------


def warm() -> None:
    """Import what `quantize` needs."""
    import hqq.core.quantize  # noqa: F401


def quantize(model: LoadedModel, recipe: HqqRecipe, dtype: torch.dtype) -> ReplacedModel:
    """Quantize the layers of a model as the recipe says; everything else is shared with it.

    Scale and zero are kept in `dtype`, as hqq does.
    """
    from hqq.core.quantize import HQQLinear

    module = model.module
    device = str(next(module.parameters()).device)

    def make(layer: nn.Module, grouping: Grouping) -> nn.Module:
        with solver_in_blocks(device):
            made = HQQLinear(
                layer,
                _library_config(grouping, recipe.solver),
                compute_dtype=dtype,
                device=device,
                del_orig=False,
            )
        made.linear_layer = None  # else it would keep the base's weight alive
        return made

    layers = groupings(shapes_of(module), recipe)
    made = replace(module, layers, make, expendable=model.expendable)
    return HqqModel(made, recipe, tuple(layers), LAYERS, dtype)


class HqqModel(ReplacedModel):
    """Where layers differ, several kernels may serve."""

    def kernel_of(self, name: str, kernel: str) -> str:
        if kernels.JOINT not in kernel:
            return kernel
        return kernels.serving(kernel, grouping_of(self.layer(name).meta))


def grouping_of(meta: Mapping[str, Any]) -> Grouping:
    """How a layer is cut into groups, as it says itself."""
    rows, columns = meta["shape"]
    return Grouping(rows, columns, meta["nbits"], meta["group_size"], meta["axis"])


def _library_config(grouping: Grouping, solver: bool) -> dict[str, Any]:
    """The library's own defaults for these bits, with the solver on or off."""
    from hqq.core.quantize import BaseQuantizeConfig

    config: dict[str, Any] = BaseQuantizeConfig(
        nbits=grouping.bits, group_size=grouping.group_size, axis=grouping.axis
    )
    config["weight_quant_params"]["optimize"] = solver
    return config


@contextmanager
def solver_in_blocks(device: str, elements: int = 65536) -> Iterator[None]:
    """On a CPU, run hqq's solver over blocks of groups that fit the cache.

    Groups do not depend on each other, so only the iteration at which the solver stops early can
    differ: error equal to four digits in 0.41 to 0.49 of the time at 4, 3 and 2 bits
    (docs/decisions/0003-hqq.md).
    """
    from hqq.core.quantize import Quantizer

    whole = Quantizer.optimize_weights

    def blocked(*, tensor: Any, scale: Any, zero: Any, axis: int, **options: Any) -> Any:
        import torch

        across = 1 - axis
        width = max(1, elements // tensor.shape[axis])
        parts = [
            whole(tensor=t, scale=s, zero=z, axis=axis, **options)
            for t, s, z in zip(
                tensor.split(width, across),
                scale.split(width, across),
                zero.split(width, across),
                strict=True,
            )
        ]
        return tuple(torch.cat(part, across) for part in zip(*parts, strict=True))

    if device == "cpu":
        Quantizer.optimize_weights = staticmethod(blocked)
    try:
        yield
    finally:
        Quantizer.optimize_weights = staticmethod(whole)


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
        return _meta(grouping_of(layer.meta))

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
        settings = _library_config(grouping, recipe.solver)
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


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    made = read(path, device, LAYERS)
    return HqqModel(made.module, made.recipe, made.layers, made.codec, made.dtype)
