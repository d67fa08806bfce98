"""What a figure was measured on: speeds are compared only between machines of one kind."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def hardware_of(device: str) -> str:
    """The name of the accelerator or of the processor, as its maker calls it."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return _processor(Path("/proc/cpuinfo")) or platform.processor() or platform.machine()


def _processor(path: Path) -> str | None:
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), None)
