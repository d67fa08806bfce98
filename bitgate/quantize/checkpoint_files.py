"""What a checkpoint on disk says of itself, without loading it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from bitgate.quantize import QuantizeError

KERNEL = "transformers"  #: whatever the library puts in the place of linear layers
#: the library turns all weights into floating point while it loads them, or at their first use
DEQUANTIZED = "dequantized-at-load"

#: formats of which it is known what loads them, and whether that leaves the weights quantized
FORMATS: dict[str, tuple[tuple[str, ...], str]] = {
    "awq": (("gptqmodel",), KERNEL),
    "bitsandbytes": (("bitsandbytes",), KERNEL),
    "compressed-tensors": (("compressed_tensors",), DEQUANTIZED),
    "gguf": (("gguf",), DEQUANTIZED),
    "gptq": (("gptqmodel", "optimum"), KERNEL),
    "torchao": (("torchao",), KERNEL),
    "none": ((), DEQUANTIZED),
}
#: how the packages of these modules are called where their names differ
DISTRIBUTIONS = {"compressed_tensors": "compressed-tensors"}
WEIGHTS = (".safetensors", ".bin", ".gguf")
#: what codes are kept in, as safetensors calls it, and as torch does
CODES = {
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True)
class Found:
    """A checkpoint on disk, and what it says of itself."""

    path: Path  #: a directory for transformers, or a GGUF file
    format: str  #: a `quant_method` of transformers, `gguf`, or `none` if it is not quantized
    bits: int | None  #: of most weights, if it says
    config: Mapping[str, Any]  #: `config.json`; empty for GGUF

    @property
    def kernel(self) -> str:
        return FORMATS[self.format][1] if self.format in FORMATS else KERNEL

    def weights(self) -> list[Path]:
        """The files that its weights are loaded from: as transformers prefers them."""
        if self.path.is_file():
            return [self.path]
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (single := self.path / name).is_file():
                return [single]
            files = sorted(self.path.glob(f"*{single.suffix}"))
            if files and (listed := _indexed(self.path, single.suffix)):
                return [file for file in files if file.name in listed]
        unusual = (sorted(self.path.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin"))
        return next((files for files in unusual if files), [])


def _indexed(directory: Path, suffix: str) -> set[str]:
    """The shards that an index names; none without one."""
    found: set[str] = set()
    for index in directory.glob(f"*{suffix}.index.json"):
        found |= set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    return found


def find(path: Path) -> Found:
    """What a directory or file holds.

    Raises:
        QuantizeError: if that is no checkpoint.
    """
    if path.is_file():
        if path.suffix != ".gguf":
            raise QuantizeError(f"{path}: a checkpoint is a directory or a .gguf file")
        return Found(path, "gguf", _gguf_bits(path), {})
    if not path.is_dir():
        raise QuantizeError(f"{path}: there is no such checkpoint")
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        inside = sorted(path.glob("*.gguf"))
        hint = f"; give the file itself: {inside[0]}" if inside else ""
        raise QuantizeError(f"{path}: it has no config.json{hint}") from None
    except (ValueError, OSError) as error:
        raise QuantizeError(f"{path}: config.json cannot be read: {error}") from None
    how = config.get("quantization_config") or config.get("compression_config") or {}
    found = Found(path, str(how.get("quant_method", "none")), bits_of(how), config)
    if not found.weights():
        raise QuantizeError(f"{path}: it has no .safetensors and no .bin weights")
    return found


def bits_of(how: Mapping[str, Any]) -> int | None:
    """The bits of weights, where a `quantization_config` says; None where weights differ in it."""
    if how.get("load_in_4bit"):
        return 4
    if how.get("load_in_8bit"):
        return 8
    groups = [group.get("weights") or {} for group in how.get("config_groups", {}).values()]
    candidates = [
        *(how.get(key) for key in ("bits", "w_bit", "nbits")),
        *(weights.get("num_bits") for weights in groups),
    ]
    bits: set[int | None] = {number for number in candidates if isinstance(number, int)}
    bits |= {_named_bits(name) for name in _torchao_names(how.get("quant_type"))}
    return bits.pop() if len(bits) == 1 else None


def _torchao_names(said: Any) -> Iterator[str]:
    """The names of torchao's configurations in a `quant_type`: of several where it goes by layer.
    Before transformers 5 it was one plain name, `int4_weight_only`."""
    if isinstance(said, str):
        yield said
    elif isinstance(said, dict):
        name = said.get("_type")
        if isinstance(name, str) and "weight" in name.lower():
            yield name
            return
        for inner in said.values():
            if isinstance(inner, dict):
                yield from _torchao_names(inner)


def _named_bits(name: str) -> int | None:
    """Of the weights, not of activations: 4 for `Int8DynamicActivationInt4WeightConfig`; None where
    the name leaves it to an argument (`IntxWeightOnlyConfig`)."""
    found = re.search(r"(?:int|float|fp)(\d+)(?:semisparse)?_?weight", name.lower())
    return int(found[1]) if found else None


def _gguf_bits(path: Path) -> int | None:
    """The bits of the type that most weights have: 4 for Q4_K; None for floating point."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise QuantizeError(f"{path}: not a GGUF file: {error}") from None
    weights: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.tensor_type.name
        weights[name] = weights.get(name, 0) + int(tensor.n_elements)
    most = max(weights, key=lambda name: weights[name], default="")
    digits = re.match(r"I?T?Q(\d)", most)
    return int(digits[1]) if digits else None


def quantized_on_disk(found: Found, modules: Collection[str]) -> dict[str, frozenset[str]]:
    """Those of the `modules` whose weights are not plain floating point in the files, each with
    how it is kept there: `{"qweight I32", "qzeros I32"}`. No weight is read.

    One of a layer's tensors holds codes (bytes, integers or 8-bit floats) and has more than one
    dimension. It is called `LAYER.weight`, `LAYER.qweight`, `LAYER._weight_qdata`... bitsandbytes
    may call its codes floats (`bnb_4bit_quant_storage`), and describes them beside.

    Raises:
        QuantizeError: if a file cannot be read.
    """
    kept: dict[str, set[str]] = {}
    for file in found.weights():
        tensors = _in_safetensors(file) if file.suffix == ".safetensors" else _in_pickle(file)
        for key, dtype, dimensions in tensors:
            layer, described, how = key.partition(".weight.quant_state.")
            if not described:
                layer, _, part = key.rpartition(".")
                how = f"{part} {dtype}"
                if dtype not in CODES or dimensions < 2:
                    continue
            if layer in modules:
                kept.setdefault(layer, set()).add(how)
    return {layer: frozenset(how) for layer, how in kept.items()}


def _in_safetensors(file: Path) -> Iterator[tuple[str, str, int]]:
    """Name, dtype as safetensors calls it, and number of dimensions of each tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                part = opened.get_slice(key)
                yield key, part.get_dtype(), len(part.get_shape())
    except SafetensorError as error:
        raise QuantizeError(f"{file}: it cannot be read: {error}") from None


def _in_pickle(file: Path) -> Iterator[tuple[str, str, int]]:
    """The same of a `.bin` file, where a tensor of torchao's classes is made of others. torch
    reads those only once their library, when it is imported, has declared them safe."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    names = {getattr(torch, dtype): name for name, dtype in CODES.items()}

    def parts(key: str, tensor: torch.Tensor) -> Iterator[tuple[str, str, int]]:
        if is_traceable_wrapper_subclass(tensor):
            for inner in tensor.__tensor_flatten__()[0]:
                yield from parts(key, getattr(tensor, inner))
        else:
            yield key, names.get(tensor.dtype, str(tensor.dtype)), tensor.dim()

    try:  # torch maps the files of its zip format only
        state = torch.load(file, "meta", weights_only=True, mmap=is_zipfile(file))
    except Exception as error:  # UnpicklingError, or anything at all from a damaged file
        raise QuantizeError(f"{file}: it cannot be read with weights_only: {error}") from None
    for key, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            yield from parts(key, tensor)
