"""Pickled numpy arrays, read without ever running what they contain."""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.sources.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

#: all that the pickle of an array names: a function that makes an empty one, and its two classes
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before numpy 2, and since
_GZIP = b"\x1f\x8b"


class _ForbiddenError(Exception):
    """A pickle asks for something that no array consists of."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if module in _MULTIARRAY and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise _ForbiddenError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenError(f"a persistent object {pid!r}")


def _reconstruct(subtype: Any, shape: Any, dtype: Any) -> Any:
    """numpy's own `_reconstruct`: always an empty array, which its state then fills."""
    import numpy as np

    if subtype is not np.ndarray:
        raise _ForbiddenError(f"an array of {subtype!r}")
    return np.ndarray((0,), "b")


def read_array(path: Path) -> np.ndarray:
    """The numbers of a pickled numpy array, gzipped or not.

    Raises:
        SourceError: if the file is damaged, is no array of numbers, or asks for anything but
            numpy's own classes of arrays, which it then names; nothing of it has run.
    """
    import numpy as np

    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        array = _Unpickler(io.BytesIO(content)).load()
    except _ForbiddenError as error:
        raise SourceError(
            f"{path.name}: the pickle asks for {error}, which is refused: arrays of numpy are "
            "read, and nothing else, as a pickle can run any code. Convert it"
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise SourceError(f"{path.name} is truncated or damaged ({error})") from error
    except Exception as error:  # a damaged pickle raises anything at all
        raise SourceError(f"{path.name} is no pickled array that can be read: {error!r}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        what = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise SourceError(f"{path.name} holds no array of numbers, but {what}")
    return array
