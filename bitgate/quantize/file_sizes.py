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


def laid_out(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> tuple[int, int]:
    """Bytes of a safetensors file: of its header, the length in front of it included, and of its
    tensors.

    Its text is added up and not written: for a model of billions of parameters that is some
    thousand entries, and there are many recipes to be asked for.
    """
    length = len(_compact({"__metadata__": dict(metadata)}))
    names: dict[str, list[str]] = {}
    for name, stored in tensors.items():
        names.setdefault(stored.dtype, []).append(name)
    end, digits = 0, len("0")
    for dtype in sorted(names, key=ORDER.__getitem__, reverse=True):
        for name in sorted(names[dtype]):
            size, entry = _sizes(tensors[name])
            end += size
            begin, digits = digits, len(str(end))
            length += len(",") + escaped(name) + entry + begin + digits
    return LENGTH + -(-length // ALIGNMENT) * ALIGNMENT, end


def _compact(value: object) -> bytes:
    """As safetensors writes JSON: without spaces, and in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@cache
def escaped(text: str) -> int:
    """Bytes of a text within JSON, without the quotes around it."""
    return len(_compact(text)) - 2
