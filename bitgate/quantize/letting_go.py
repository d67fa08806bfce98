"""Memory that nobody needs any more goes back to the operating system at once.

A model whose layers are let go of one by one, while their quantized ones take their places, is
never in memory twice. Dropping a layer is not enough on a CPU: the pages of weights that are mapped
from a file stay resident while any other tensor of that file is in use, and the C library keeps
what was freed for itself.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: of <asm-generic/mman-common.h>: take these pages away. Those of a private mapping of a file are
#: read from the file again, should anybody ask for them; any others would be zero
MADV_DONTNEED = 4
MAPS = Path("/proc/self/maps")


def let_go(tensors: Iterable[Tensor]) -> None:
    """Give back the memory of tensors, which nobody may use any more; without effect where the
    platform has no means. What is in memory of its own is freed with its tensor."""
    for tensor in tensors:
        if tensor.device.type == "cpu":
            start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
            # whole pages only: the first and the last may be a neighbour's, too
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first and _is_mapped_from_a_file(first, last):
                _take_away(first, last)


def trim() -> None:
    """Make the C library give back what it keeps of memory that was freed."""
    if (give_back := _function("malloc_trim")) is not None:
        give_back(0)


def _is_mapped_from_a_file(first: int, last: int) -> bool:
    """Whether one private mapping of a file has all of these addresses: lines of
    `first-last rw-p offset device inode path` (proc_pid_maps(5))."""
    try:
        lines = MAPS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    for line in lines:
        addresses, flags, _, _, inode = line.split()[:5]
        low, high = (int(address, 16) for address in addresses.split("-"))
        if low <= first < high:
            return last <= high and flags.endswith("p") and inode != "0"
    return False


def _take_away(first: int, last: int) -> None:
    if (advise := _function("madvise")) is not None:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)


@cache
def _function(name: str) -> Callable[..., Any] | None:
    """One of the C library's; None where it has none of that name."""
    try:
        found: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return found
