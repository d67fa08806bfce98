"""Where models run, and in which dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitgate.sources.errors import SourceError

if TYPE_CHECKING:
    import torch


def pick_device(wanted: str) -> str:
    """`auto` is an accelerator if there is one."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        found = torch.cuda.device_count()
        number = int(wanted.partition(":")[2] or 0)
        if number >= found:
            raise SourceError(
                f"--device {wanted}: torch finds {found} CUDA devices here; use --device cpu"
            )
    return wanted


def serving_dtype(device: str) -> torch.dtype:
    """The dtype that the base is served in: what each kind of device does well."""
    import torch

    return torch.float32 if device == "cpu" else torch.float16
