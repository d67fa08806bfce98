"""Whether a model fits, said before any of its weights is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.catalog import Task
from bitgate.sources.architecture import skeleton
from bitgate.sources.errors import DoesNotFit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

HEADROOM = 1.15  #: of the weights: activations, a key-value cache, temporary copies
#: limit, usage, and the file that says, under which name, what the kernel takes back on demand
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
#: bytes at which a limit is none: version 1 of cgroups has the largest number of pages for that
_NO_LIMIT = 2**60


def check_fits(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: str,
    headroom: float = HEADROOM,
    task: Task = "causal-lm",
) -> None:
    """Raise DoesNotFit with the arithmetic if the model needs more memory than there is; where that
    is not known, it has to be tried."""
    parameters = count_parameters(config, task)
    needed = int(parameters * dtype.itemsize * headroom)
    available = available_memory(device)
    if available is not None and needed > available:
        raise DoesNotFit(
            f"does not fit in the memory of {device}: {parameters:,} parameters x "
            f"{dtype.itemsize} bytes ({dtype}) x {headroom:g} headroom = {_gib(needed)} needed, "
            f"{_gib(available)} available. Free memory, choose a smaller dtype or another device"
        )


def count_parameters(config: PreTrainedConfig, task: Task = "causal-lm") -> int:
    """The number of parameters, tied ones once, from the shapes alone."""
    return sum(parameter.numel() for parameter in skeleton(config, task).parameters())


def available_memory(device: str) -> int | None:
    """Bytes that a process could still allocate there without swapping; None where the system does
    not say, as a sandbox without /proc."""
    if device.startswith("cuda"):
        import torch

        # what torch keeps of freed tensors is this process's own to use again
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    import psutil

    limit = _cgroup_available()
    try:
        available = int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        return limit
    return available if limit is None else min(available, limit)


def _cgroup_available(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves; None without a limit."""
    for limit, usage, statistics, taken_back in _CGROUPS:
        try:
            limited = int((root / limit).read_text())
            used = int((root / usage).read_text())
            stat = dict(line.split() for line in (root / statistics).read_text().splitlines())
        except (OSError, ValueError):  # no such controller, or the limit is "max"
            continue
        if limited < _NO_LIMIT:
            return max(0, limited - used + int(stat.get(taken_back, 0)))
    return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
