"""How many bytes a saved model is, from what it holds: names, types and shapes.

Source of the format: safetensors/src/tensor.rs of safetensors 0.8, `prepare`: 8 bytes that give the
length of the header, the header as JSON without spaces, filled up with spaces to a multiple of 8,
and the tensors, those of wider types first and then by name, without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

#: types as safetensors calls them, in its order, and the bytes of a number
TYPES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2}
TYPES |= {"I32": 4, "F32": 4, "F64": 8, "I64": 8}
ORDER = {name: number for number, name in enumerate(TYPES)}
#: torch's names of those that models are served in
FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
LENGTH = ALIGNMENT = 8  #: bytes of the header's length, and what the header is a multiple of


class Stored(NamedTuple):
    """A tensor in a file."""

    dtype: str  #: one of TYPES
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return _sizes(self)[0]


@cache
def _sizes(stored: Stored) -> tuple[int, int]:
    """Bytes of a tensor, and of what the header says of it, but for name and digits of the place;
    the tensors of a model are of few kinds."""
    said = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": ()}
    entry = len(_compact({"": said})) - len("{}") + len(",")
    return math.prod(stored.shape) * TYPES[stored.dtype], entry


def header_bytes(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> int:
    """Of a safetensors file, the length in front of the header included.

    Its text is added up and not written: for a model of billions of parameters that is some
    thousand entries, and there are many recipes to be asked for.
    """
    length = len(_compact({"__metadata__": dict(metadata)}))
    end = 0
    for name in sorted(tensors, key=lambda name: (-ORDER[tensors[name].dtype], name)):
        size, entry = _sizes(tensors[name])
        begin, end = end, end + size
        length += len(",") + escaped(name) + entry + len(f"{begin}{end}")
    return LENGTH + -(-length // ALIGNMENT) * ALIGNMENT


def _compact(value: object) -> bytes:
    """As safetensors writes JSON: without spaces, and in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@cache
def escaped(text: str) -> int:
    """Bytes of a text within JSON, without the quotes around it."""
    return len(_compact(text)) - 2
