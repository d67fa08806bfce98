"""GGUF files through llama.cpp, the library that runs them: exported, quantized and served.

Which type each tensor gets is predicted in `gguf_types`, how the model is exported is in
`gguf_export`, and what serves it in `bitgate.kernels.llama_cpp`.
"""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from bitgate.catalog import Execution, LeftOut, Recipe, nearest
from bitgate.kernels import NotHereError
from bitgate.quantize import Extra, QuantizeError, Size
from bitgate.quantize.gguf_export import export, in_halves, layer_name
from bitgate.quantize.gguf_types import EMBEDDING, FILE_TYPES, matrices, padded, vectors
from bitgate.quantize.shapes import ModelShapes, shapes_of
from bitgate.sources import track

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bitgate.kernels.llama_cpp import LlamaServed
    from bitgate.sources import LoadedModel

KERNEL = "llama.cpp"
OWN_KERNELS = (KERNEL,)
EXTRA = Extra("gguf", ("llama_cpp",))
FORMAT = "bitgate-gguf-1"
#: what a file says of itself, beside what llama.cpp reads
FORMAT_KEY, RECIPE_KEY, LAYERS_KEY = "bitgate.format", "bitgate.recipe", "bitgate.layers"


class GgufRecipe(Recipe):
    """Keys of a `[[recipe]]` with `method = "gguf"`.

    A file of one type has tensors of several, so neither `bits` nor `group_size` says anything.
    """

    method: Literal["gguf"] = "gguf"
    bits: LeftOut = None
    group_size: LeftOut = None
    type: str

    crossed: ClassVar[tuple[str, ...]] = ("type",)

    @field_validator("type")
    @classmethod
    def _type_exists(cls, name: str) -> str:
        if name not in FILE_TYPES:
            raise ValueError(f"llama.cpp has no type {name!r} here; {nearest(name, FILE_TYPES)}")
        return name

    @field_validator("kernel")
    @classmethod
    def _kernel_is_llama_cpp(cls, name: str) -> str:
        if name not in ("auto", KERNEL):
            raise ValueError(f"a GGUF file is served by {KERNEL} only")
        return name

    def marks(self) -> Iterator[str]:
        yield self.type


RECIPE = GgufRecipe


def kernel(shapes: ModelShapes, recipe: GgufRecipe, device: str) -> str:
    """llama.cpp, which is served on a CPU."""
    _blaming(recipe, shapes)
    if device != "cpu":
        raise NotHereError(f"recipe {recipe.name}: {KERNEL} runs on cpu only, not on {device}")
    return KERNEL


def predicted_bytes(shapes: ModelShapes, recipe: GgufRecipe, kernel: str, element: int) -> Size:
    """Every tensor by the type that llama.cpp's rules give it; in the file, each begins at a
    multiple of 32 bytes. Without the table of a scaled rotary embedding, of at most 512 bytes."""
    sizes = [matrix.bytes for matrix in _blaming(recipe, shapes)]
    sizes += [4 * count for count in vectors(shapes)]
    return Size(disk=sum(map(padded, sizes)), memory=sum(sizes))


def _blaming(recipe: GgufRecipe, shapes: ModelShapes) -> Any:
    try:
        return matrices(shapes, recipe.type)
    except QuantizeError as error:
        raise QuantizeError(f"recipe {recipe.name}: {error}") from None


def warm() -> None:
    """Import what `quantize` needs."""
    import gguf  # noqa: F401

    from bitgate.kernels.llama_cpp import library

    library()


def quantize(model: LoadedModel, recipe: GgufRecipe, dtype: torch.dtype) -> GgufModel:
    """Export the model as 16-bit floats and let llama.cpp quantize that file, on as many threads
    as torch has."""
    layers = expected_types(shapes_of(model.module), recipe)
    folder = TemporaryDirectory(prefix="bitgate-gguf-")
    whole, path = Path(folder.name) / "f16.gguf", Path(folder.name) / "model.gguf"
    extra = {
        FORMAT_KEY: FORMAT,
        RECIPE_KEY: recipe.model_dump_json(exclude_defaults=True),
        LAYERS_KEY: json.dumps(layers),
    }
    try:
        export(model.module, whole, extra)
    except QuantizeError as error:
        raise QuantizeError(f"recipe {recipe.name}: {error}") from None
    if recipe.type == "f16":
        whole.rename(path)
    else:
        _convert(whole, path, recipe)
        whole.unlink()
    return GgufModel(path, recipe, layers, folder)


def _convert(whole: Path, path: Path, recipe: GgufRecipe) -> None:
    import torch

    from bitgate.kernels.llama_cpp import library

    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[recipe.type][0]
    parameters.nthread = torch.get_num_threads()
    with track(f"{recipe.name}: llama.cpp quantizes"):
        status = llama.llama_model_quantize(
            str(whole).encode(), str(path).encode(), ctypes.byref(parameters)
        )
    if status:
        raise QuantizeError(f"recipe {recipe.name}: llama_model_quantize ended with {status}")


def expected_types(shapes: ModelShapes, recipe: GgufRecipe) -> dict[str, str]:
    """The type of each linear layer but the head, by its name in the file."""
    return {
        f"{matrix.name}.weight": matrix.type
        for matrix in _blaming(recipe, shapes)
        if matrix.name not in (EMBEDDING, "output")
    }


class GgufModel:
    """A GGUF file of a model, and the type that each of its layers should have."""

    def __init__(
        self, path: Path, recipe: GgufRecipe, layers: dict[str, str], folder: object = None
    ) -> None:
        """`folder` is what `path` lies in, if that is to be removed with the last reference."""
        self.path = path
        self.recipe = recipe
        self.layers = layers
        self._folder = folder

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """As torch has them: by its names, and with its order of rotary pairs."""
        import torch
        from gguf import dequantize

        reader = _reader(self.path)
        heads = {
            ".attn_q.": int(reader.fields["llama.attention.head_count"].contents()),
            ".attn_k.": int(reader.fields["llama.attention.head_count_kv"].contents()),
        }
        for tensor in reader.tensors:
            if tensor.name not in self.layers:
                continue
            rows = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
            for part, count in heads.items():
                if part in tensor.name:
                    rows = in_halves(rows, count)
            yield layer_name(tensor.name.removesuffix(".weight")), rows

    def save(self, path: Path) -> None:
        """The file itself."""
        shutil.copyfile(self.path, path)

    def serve(self, execution: Execution) -> LlamaServed:
        """llama.cpp picks another type for what does not fit, so what the file holds is counted."""
        from bitgate.kernels.llama_cpp import LlamaServed

        held = tensor_types(self.path)
        packed = sum(held.get(name) == wanted for name, wanted in self.layers.items())
        return LlamaServed(self.path, execution, packed, len(self.layers), self._folder)


def tensor_types(path: Path) -> dict[str, str]:
    """The type of every tensor of a GGUF file, by name."""
    return {tensor.name: tensor.tensor_type.name for tensor in _reader(path).tensors}


def load(path: Path, device: str = "cpu") -> GgufModel:
    """A file that `GgufModel.save` wrote; it is mapped into memory where it is, not copied.

    Raises:
        QuantizeError: if it is another file.
    """
    fields = _reader(path).fields
    kept = {
        key: str(fields[key].contents())
        for key in (FORMAT_KEY, RECIPE_KEY, LAYERS_KEY)
        if key in fields
    }
    if kept.get(FORMAT_KEY) != FORMAT:
        raise QuantizeError(f"{path}: expected format {FORMAT}, got {kept.get(FORMAT_KEY)!r}")
    recipe = GgufRecipe.model_validate_json(kept[RECIPE_KEY])
    return GgufModel(path, recipe, json.loads(kept[LAYERS_KEY]))


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise QuantizeError(f"{path}: not a GGUF file: {error}") from None
