"""Pickled numpy arrays, read without ever running what they contain.

Of numpy nothing is handed to the pickle: what it names are stand-ins that write down what they are
given. The array is made afterwards, of the bytes that are there.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitgate.sources.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

_GZIP = b"\x1f\x8b"
#: what the pickle of an array of numbers is written in, protocols 2 to 5; no list, no dictionary,
#: and no number under which the unpickler would make room for billions of others
_INSTRUCTIONS = re.compile(
    "PROTO|FRAME|STOP|MARK|(EMPTY_)?TUPLE[123]?|NONE|NEW(TRUE|FALSE)|BININT[12]?|"
    "(SHORT_)?BIN(UNICODE|BYTES)8?|BYTEARRAY8|(STACK_)?GLOBAL|REDUCE|BUILD|MEMOIZE|BIN(PUT|GET)"
)
_NUMBERS = re.compile("[biuf][0-9]{1,2}")  # kinds of dtypes, and their bytes


class _RefusedError(Exception):
    """A pickle has something that no array of numbers consists of."""


class _Called:
    """Stands for a function or a class: it can be called, and nothing about it changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *given: Any) -> Any:
        return self._make(*given)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("the pickle changes a function or a class, which is refused")


class _Dtype:
    """Stands for a dtype: its kind and size, such as `u1`, and its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, ""

    def __setstate__(self, state: Any) -> None:
        _, order, *inner = state
        if order not in ("<", ">", "|", "=") or inner[:3] != [None] * 3:
            raise _RefusedError("holds no array of numbers, but one of records")
        self.order = order


class _Content(NamedTuple):
    """What an array consists of, by its own account."""

    shape: Any
    dtype: Any
    order: Any
    raw: Any
    axes: Any = None  #: in which order its axes are meant


class _Array:
    """Stands for an array."""

    __slots__ = ("content",)

    def __init__(self, content: _Content | None = None) -> None:
        self.content = content

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.content = _Content(shape, dtype, "F" if fortran else "C", raw)


def _no_constructor(*_: Any) -> Any:
    raise _RefusedError("the pickle calls ndarray, as no array's does")


_NDARRAY = _Called(_no_constructor)


def _reconstruct(subtype: Any, *_: Any) -> _Array:
    """An empty array, which its state then fills."""
    if subtype is not _NDARRAY:
        raise _RefusedError(f"holds no array of numbers, but one of {subtype!r}")
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    """Since protocol 5."""
    return _Array(_Content(shape, dtype, order, raw, axes))


def _encode(text: Any, encoding: Any) -> bytes:
    """How bytes are written before protocol 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError(f"the pickle encodes as {encoding!r}, which is refused")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Called(_Dtype),
    ("_codecs", "encode"): _Called(_encode),
    ("__builtin__", "bytes"): _Called(lambda: b""),  # before protocol 3, none at all
}
for _core in ("core", "_core"):  # before numpy 2, and since
    _KNOWN[f"numpy.{_core}.multiarray", "_reconstruct"] = _Called(_reconstruct)
    _KNOWN[f"numpy.{_core}.numeric", "_frombuffer"] = _Called(_frombuffer)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _RefusedError(
                f"the pickle asks for {module}.{name}, which is refused: arrays of numpy are "
                "read, and nothing else, as a pickle can run any code"
            )
        return _KNOWN[module, name]


def read_array(path: Path) -> np.ndarray:
    """The numbers of a pickled numpy array, gzipped or not.

    Raises:
        SourceError: if the file is damaged, is no array of numbers, or has anything in it that no
            array of numbers consists of, which it then names; nothing of it has run.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        _refuse_other_instructions(content)
        return _made(_Unpickler(io.BytesIO(content)).load())
    except _RefusedError as error:
        raise SourceError(f"{path.name}: {error}; give a pickled array of numbers") from None
    except (EOFError, OSError, zlib.error) as error:
        raise SourceError(f"{path.name} is truncated or damaged ({error})") from error
    except Exception as error:  # a damaged pickle raises anything at all
        raise SourceError(
            f"{path.name} is no pickled array that can be read, or is truncated or damaged: "
            f"{error!r}"
        ) from error


def _refuse_other_instructions(content: bytes) -> None:
    for instruction, _, _ in pickletools.genops(content):
        if not _INSTRUCTIONS.fullmatch(instruction.name):
            raise _RefusedError(
                f"holds no array of numbers, but something with {instruction.name}, which the "
                "pickle of none has; protocols 2 to 5 are read"
            )


def _made(found: Any) -> np.ndarray:
    import numpy as np

    if not isinstance(found, _Array) or found.content is None:
        raise _RefusedError(f"holds no array of numbers, but {type(found).__name__}")
    shape, dtype, order, raw, axes = found.content
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)):
        raise _RefusedError("holds no array of numbers, but something without dtype or bytes")
    if not isinstance(dtype.code, str) or not _NUMBERS.fullmatch(dtype.code):
        raise _RefusedError(f"holds no array of numbers, but {dtype.order}{dtype.code}")
    kind = np.dtype(dtype.order + dtype.code)
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise _RefusedError(f"holds no array of numbers: its shape is {shape!r}")
    if math.prod(shape) * kind.itemsize != len(raw):
        raise _RefusedError(
            f"is damaged: {list(shape)} of {kind} take {math.prod(shape) * kind.itemsize:,} bytes, "
            f"and it has {len(raw):,}"
        )
    array = np.frombuffer(raw, kind).reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)
