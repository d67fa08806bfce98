"""The peak of what a process, or the accelerator it uses, has held in memory."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LINE = r"^{}:\s+(\d+) kB$"


class NoPeakError(RuntimeError):
    """This system does not tell; the message says what is missing."""


class Peak:
    """Of memory taken since this was made: on a CPU resident memory as Linux counts it, else what
    torch has allocated on the accelerator."""

    before: int  #: bytes

    def __init__(self, device: str) -> None:
        self.device = device
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        # the high-water mark begins anew, where the kernel lets it; importing may have passed it
        with suppress(OSError):
            CLEAR.write_text("5")
        self.before = resident("VmRSS")

    def taken(self) -> int:
        """Bytes."""
        if self.device.startswith("cuda"):
            import torch

            most: int = torch.cuda.max_memory_allocated(self.device)
            return most - self.before
        return resident("VmHWM") - self.before


def resident(what: str, status: Path = STATUS) -> int:
    """Bytes that are resident now, `VmRSS`, or were at most, `VmHWM`. Not `ru_maxrss`, which a
    process inherits from the one that started it.

    Raises:
        NoPeakError: where there is no such file, or it does not say.
    """
    try:
        text = status.read_text("utf-8", "replace")
    except OSError as error:
        raise NoPeakError(f"{status}: {error.strerror}") from None
    found = re.search(_LINE.format(what), text, re.MULTILINE)
    if found is None:
        raise NoPeakError(f"{status} does not tell {what}")
    return int(found[1]) * 1024
