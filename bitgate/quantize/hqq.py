"""Half-quadratic quantization through the hqq library.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023);
packing rules: hqq/core/bitpack.py and hqq/core/quantize.py of hqq 0.2.8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bitgate import kernels
from bitgate.catalog import Execution, Name, Recipe, nearest
from bitgate.kernels.affine import Affine, Grouping
from bitgate.quantize import QuantizeError, Size
from bitgate.quantize.shapes import LinearShape, ModelShapes, head_of, shapes_of

if TYPE_CHECKING:
    import torch
    from hqq.core.quantize import HQQLinear
    from torch import nn

    from bitgate.kernels.served import TorchServed


def _no_flag(value: Any) -> Any:
    """TOML's true equals 1, which is a bit width."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


Bits = Annotated[Literal[8, 4, 3, 2, 1], BeforeValidator(_no_flag)]
FORMAT = 1  #: of the files that `HqqModel.save` writes


class HqqRecipe(Recipe):
    """Keys of a `[[recipe]]` with `method = "hqq"`."""

    method: Literal["hqq"] = "hqq"
    bits: Bits
    group_size: Annotated[int, Field(gt=0, multiple_of=8)]
    axis: Annotated[Literal[0, 1], BeforeValidator(_no_flag)] = Field(
        1, description="1 groups along the inputs, 0 along the outputs"
    )
    head: Bits | None = Field(None, description="bits of the output head; default: left alone")
    layers: tuple[str, ...] = Field(
        ("*",), strict=False, description="globs on the names of linear layers"
    )
    label: Name | None = Field(None, description="stands for `layers` in the recipe's name")
    solver: bool = Field(True, description="false: round to nearest, without optimization")

    crossed: ClassVar[tuple[str, ...]] = ("bits", "group_size", "axis")

    @field_validator("kernel")
    @classmethod
    def _kernel_exists(cls, name: str) -> str:
        known = ("auto", *kernels.NAMES)
        if name not in known:
            raise ValueError(f"no kernel is called {name!r}; {nearest(name, known)}")
        return name

    @model_validator(mode="after")
    def _selection_has_a_name(self) -> HqqRecipe:
        if self.layers != ("*",) and not self.label:
            raise ValueError("`layers` needs a `label`, which tells this recipe apart in ids")
        return self

    def marks(self) -> Iterator[str]:
        if self.axis == 0:
            yield "axis0"
        if self.label:
            yield self.label
        if self.head:
            yield f"head{self.head}"
        if not self.solver:
            yield "rtn"
        yield from super().marks()


RECIPE = HqqRecipe


# --- sizes ---------------------------------------------------------------------------------


def groupings(shapes: ModelShapes, recipe: HqqRecipe) -> dict[str, Grouping]:
    """How every layer that the recipe quantizes is cut into groups, by name."""
    chosen: list[tuple[LinearShape, int]] = [
        (linear, recipe.bits) for linear in shapes.select(recipe.layers)
    ]
    if not chosen:
        raise QuantizeError(
            f"recipe {recipe.name}: layers: no linear layer matches {list(recipe.layers)}; "
            f"there is {', '.join(linear.name for linear in shapes.linears[:3])}, ..."
        )
    if recipe.head is not None:
        if shapes.head is None:
            raise QuantizeError(f"recipe {recipe.name}: head: the model has no linear output head")
        chosen += [(s, recipe.head) for s in shapes.linears if s.name == shapes.head]
    out = {}
    for linear, bits in chosen:
        grouping = Grouping(
            linear.out_features, linear.in_features, bits, recipe.group_size, recipe.axis
        )
        if reason := unpackable(grouping):
            raise QuantizeError(f"recipe {recipe.name}: {linear.name}: {grouping}: {reason}")
        out[linear.name] = grouping
    return out


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


def kernel(shapes: ModelShapes, recipe: HqqRecipe, device: str) -> str:
    """The kernel that serves every quantized layer on `device`."""
    return kernels.choose(recipe.kernel, device, groupings(shapes, recipe))


def predicted_bytes(shapes: ModelShapes, recipe: HqqRecipe, kernel: str, element: int) -> Size:
    """The size from shapes alone. A tied head is one tensor with the embedding until it is
    quantized; then the embedding stays beside it."""
    quantized = groupings(shapes, recipe)
    rest = shapes.others
    for linear in shapes.linears:
        if linear.name not in quantized and not (linear.name == shapes.head and shapes.tied):
            rest += linear.out_features * linear.in_features
        rest += linear.out_features if linear.bias else 0
    disk = rest * element + sum(layer_bytes(g, element) for g in quantized.values())
    if kernel == kernels.REFERENCE:
        memory = disk
    else:
        packed = kernels.kernel(kernel).packed_bytes
        memory = rest * element + sum(packed(g) for g in quantized.values())
    return Size(disk=disk, memory=memory + shapes.transient)


# --- quantizing ----------------------------------------------------------------------------


def quantize(module: nn.Module, recipe: HqqRecipe, dtype: torch.dtype) -> HqqModel:
    """Quantize `module`'s layers as the recipe says; everything else is shared with it.

    Scale and zero are kept in `dtype`, as hqq does.
    """
    from hqq.core.quantize import HQQLinear

    copy = share(module)
    layers = groupings(shapes_of(module), recipe)
    device = str(next(module.parameters()).device)
    for name, grouping in layers.items():
        with solver_in_blocks(device):
            layer = HQQLinear(
                module.get_submodule(name),
                _library_config(grouping, recipe.solver),
                compute_dtype=dtype,
                device=device,
                del_orig=False,
            )
        layer.linear_layer = None  # else it would keep the base's weight alive
        _put(copy, name, layer)
    return HqqModel(copy, recipe, tuple(layers))


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


def share(module: nn.Module) -> nn.Module:
    """A copy of the module tree whose tensors are the original's own."""
    from copy import deepcopy

    tensors = [*module.parameters(), *module.buffers()]
    return deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


class HqqModel:
    """A model with HQQ layers in place of some linear layers."""

    def __init__(self, module: nn.Module, recipe: HqqRecipe, layers: tuple[str, ...]) -> None:
        self.module = module
        self.recipe = recipe
        self.layers = layers

    def layer(self, name: str) -> HQQLinear:
        return self.module.get_submodule(name)

    def grouping(self, name: str) -> Grouping:
        meta = self.layer(name).meta
        rows, columns = meta["shape"]
        return Grouping(rows, columns, meta["nbits"], meta["group_size"], meta["axis"])

    def affine(self, name: str) -> Affine:
        """A layer's codes, scale and zero, unpacked; groups must not cross rows."""
        from hqq.core.quantize import Quantizer

        grouping, meta = self.grouping(name), self.layer(name).meta
        rows, columns, group = grouping.out_features, grouping.in_features, grouping.group_size
        if grouping.axis != 1 or columns % group:
            raise QuantizeError(f"{name}: {grouping}: a group crosses rows")
        codes = Quantizer.unpack[meta["packing"]](self.layer(name).W_q)
        return Affine(
            grouping,
            codes=codes[: rows * columns // group].reshape(rows, columns),  # 3 bits pad rows
            scale=meta["scale"].reshape(rows, -1),
            zero=meta["zero"].reshape(rows, -1),
        )

    def serve(self, execution: Execution) -> TorchServed:
        from hqq.core.quantize import HQQLinear

        from bitgate.kernels.served import TorchServed

        module, layer_class = self.module, HQQLinear
        if execution.kernel != kernels.REFERENCE:
            packing = kernels.kernel(execution.kernel)
            layer_class = packing.LAYER
            module = share(self.module)
            for name in self.layers:
                _put(module, name, packing.pack(self.affine(name), self.layer(name).bias))
        # count what stands there now, by its exact class: a library that swapped a layer, or
        # left one alone, is seen here
        found = sum(type(part) is layer_class for part in module.modules())
        return TorchServed(module, execution, found, len(self.layers))

    # --- on disk -------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """One safetensors file: packed layers, the rest of the model, and its configuration.

        Everything is a plain tensor or JSON: reading it runs no code (hqq's own format evaluates
        the name of a dtype).
        """
        from safetensors.torch import save_file

        layers: dict[str, Any] = {}
        tensors: dict[str, torch.Tensor] = {}
        for name in self.layers:
            layer = self.layer(name)
            tensors[f"{name}.codes"] = layer.W_q.data
            tensors[f"{name}.scale"] = layer.meta["scale"]
            tensors[f"{name}.zero"] = layer.meta["zero"]
            if layer.bias is not None:
                tensors[f"{name}.bias"] = layer.bias
            layers[name] = {k: layer.meta[k] for k in ("nbits", "group_size", "axis")}
            layers[name]["shape"] = list(layer.meta["shape"])
        inside = tuple(f"{name}." for name in self.layers)
        seen: set[int] = set()
        for key, tensor in self.module.state_dict().items():
            # tied weights are written once, under their first name
            if not key.startswith(inside) and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                tensors[key] = tensor
        metadata = {
            "format": f"bitgate-hqq-{FORMAT}",
            "recipe": self.recipe.model_dump_json(exclude_defaults=True),
            "layers": json.dumps(layers),
            "config": self.module.config.to_json_string(use_diff=False),
        }
        save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata)


def load(path: Path, device: str = "cpu") -> HqqModel:
    """The model that `HqqModel.save` wrote, with bit-identical tensors."""
    import torch
    from hqq.core.quantize import HQQLinear, Quantizer
    from safetensors import SafetensorError, safe_open
    from torch import nn

    from bitgate.sources.architecture import config_from, uninitialized

    try:
        opened = safe_open(path, "pt", device=device)
    except SafetensorError as error:
        raise QuantizeError(f"{path}: not a safetensors file: {error}") from None
    with opened as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != f"bitgate-hqq-{FORMAT}":
            raise QuantizeError(
                f"{path}: expected format bitgate-hqq-{FORMAT}, got {metadata.get('format')!r}"
            )
        recipe = HqqRecipe.model_validate_json(metadata["recipe"])
        layers: dict[str, dict[str, Any]] = json.loads(metadata["layers"])
        config = config_from(json.loads(metadata["config"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def take(key: str) -> torch.Tensor:
        if key not in tensors:
            raise QuantizeError(f"{path}: the file lacks {key}")
        return tensors.pop(key)

    parts = {n: {part: take(f"{n}.{part}") for part in ("codes", "scale", "zero")} for n in layers}
    dtype = next(iter(parts.values()))["scale"].dtype
    module = uninitialized(config, dtype)
    module.tie_weights()
    for name, meta in layers.items():
        rows, columns = meta["shape"]
        grouping = Grouping(rows, columns, meta["nbits"], meta["group_size"], meta["axis"])
        settings = _library_config(grouping, recipe.solver)
        layer = HQQLinear(None, settings, compute_dtype=dtype, device=device, initialize=False)
        packing = Quantizer.bit_to_packing[meta["nbits"]]
        layer.W_q = nn.Parameter(parts[name]["codes"], requires_grad=False)
        biased = module.get_submodule(name).bias is not None
        layer.bias = take(f"{name}.bias") if biased else None
        layer.meta = {
            **meta,
            "shape": torch.Size(meta["shape"]),
            "scale": parts[name]["scale"],
            "zero": parts[name]["zero"],
            "packing": packing,
            "unpack_view_dtype": Quantizer.unpack_view_dtype[packing],
            "view_as_float": False,
            "quant_scale": False,
            "quant_zero": False,
            "compute_dtype": dtype,
        }
        layer.out_features, layer.in_features = rows, columns
        layer.ready = layer.in_gpu = True
        _put(module, name, layer)
    module.load_state_dict(tensors, strict=False, assign=True)
    head = head_of(module)
    if head is not None and head not in layers:
        module.tie_weights()
    _refuse_gaps(module, tensors, layers, path)
    return HqqModel(module.to(device).eval().requires_grad_(False), recipe, tuple(layers))


def _refuse_gaps(module: nn.Module, tensors: Any, layers: Any, path: Path) -> None:
    """Every tensor of the model must have come from the file, directly or by a tie."""
    given = {tensor.data_ptr() for tensor in tensors.values()}
    inside = tuple(f"{name}." for name in layers)
    for key, tensor in module.state_dict().items():
        if not key.startswith(inside) and tensor.data_ptr() not in given:
            raise QuantizeError(f"{path}: the file lacks {key}")
