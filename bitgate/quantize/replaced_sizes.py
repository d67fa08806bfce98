"""The size of the file that `ReplacedModel.save` writes, to the byte, before there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitgate.catalog import Recipe
from bitgate.quantize import Size
from bitgate.quantize.file_sizes import FLOATS, TYPES, Stored, laid_out
from bitgate.quantize.shapes import FileShapes, ModelShapes


@dataclass(frozen=True)
class StoredLayer:
    """What a codec writes of a layer: its parts, and as JSON everything else."""

    parts: Mapping[str, Stored]
    meta: Mapping[str, Any]
    bias: str | None = None  #: its type; None if there is none

    @property
    def bytes(self) -> int:
        """Of the parts, to which a bias does not belong."""
        return sum(part.bytes for part in self.parts.values())


def metadata_of(
    task: str, format_: str, recipe: Recipe, layers: Mapping[str, Any], dtype: str, config: str
) -> dict[str, str]:
    """What a file says beside its tensors."""
    return {
        "task": task,
        "format": format_,
        "recipe": recipe.model_dump_json(exclude_defaults=True),
        "layers": json.dumps(layers),
        "dtype": dtype,
        "config": config,
    }


def predicted_size(
    shapes: ModelShapes,
    recipe: Recipe,
    format_: str,
    layers: Mapping[str, StoredLayer],
    element: int,
    *,
    tensors: int,
    memory: int,
) -> Size:
    """The size of a model in which `layers` are quantized, convolutions with the batch norms that
    can be folded into them among those, and other numbers have `element`
    bytes.

    `tensors` are the bytes of all tensors as the method counts them: of the file no more is known
    where the shapes do not say what else is in it.
    """
    if shapes.file is None:
        return Size(tensors, memory)
    floats = float_type(shapes, element)
    stored = _tensors(shapes, shapes.file, layers, floats)
    metadata = metadata_of(
        shapes.file.task,
        format_,
        recipe,
        {name: layer.meta for name, layer in layers.items()},
        next(name for name, kind in FLOATS.items() if kind == floats),
        "-" * shapes.file.config,  # of which only the length is known
    )
    header, tensors = laid_out(stored, metadata)
    return Size(header + tensors, memory, header)


def float_type(shapes: ModelShapes, element: int) -> str:
    """How safetensors calls numbers of so many bytes: as the weights have them, or where there are
    none, as models are served."""
    said = None if shapes.file is None else FLOATS.get(shapes.file.dtype or "")
    if said is not None and TYPES[said] == element:
        return said
    return {2: "F16", 4: "F32", 8: "F64"}[element]


def _tensors(
    shapes: ModelShapes, file: FileShapes, layers: Mapping[str, StoredLayer], floats: str
) -> dict[str, Stored]:
    """Every tensor of the file; tied weights are there once, under their first name."""
    convolutions = [one for one in shapes.convolutions if one.name in layers]
    replaced = {part for one in convolutions for part in (one.name, one.norm)}
    found = {
        tensor.name: Stored(tensor.integer or floats, tensor.shape)
        for tensor in file.tensors
        if tensor.name.rpartition(".")[0] not in replaced
    }
    outputs = {one.name: one.out_features for one in shapes.linears}
    outputs |= {one.name: one.out_features for one in convolutions}
    for name, layer in layers.items():
        for part, stored in layer.parts.items():
            found[f"{name}.{part}"] = stored
        if layer.bias is not None:
            found[f"{name}.bias"] = Stored(layer.bias, (outputs[name],))
    for linear in shapes.linears:
        if linear.name in layers:
            continue
        if not (linear.name == shapes.head and shapes.tied):
            weight = linear.out_features, linear.in_features
            found[f"{linear.name}.weight"] = Stored(floats, weight)
        if linear.bias and linear.name not in file.shared_biases:
            found[f"{linear.name}.bias"] = Stored(floats, (linear.out_features,))
    return found
