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
    """By `model name`; on ARM, where there is none, by who designed the cores and their numbers."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    told: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), []).append(value.strip())
    if "model name" in told:
        return told["model name"][0]
    if "CPU part" not in told:
        return None
    makers, parts = (sorted(set(told.get(key, ()))) for key in ("CPU implementer", "CPU part"))
    return f"ARM implementer {'/'.join(makers) or 'unknown'} part {'/'.join(parts)}"
