"""Bare shapes: a model of the right architecture, filled with seeded random numbers.

Latency does not depend on what the weights are, so a shape is enough to measure speed and size.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from bitgate.catalog import Task
from bitgate.sources.architecture import uninitialized

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedConfig

GENERATOR = 1  #: raise it when the numbers change for a seed
STANDARD_DEVIATION = 0.02
_BLOCK = 1 << 16  # weights at a time: what is worked on stays in the processor's cache


def random_model(
    config: PreTrainedConfig, seed: int, dtype: torch.dtype, task: Task = "causal-lm"
) -> nn.Module:
    """The same weights for the same seed, whatever the threads or the dtype (but for rounding)."""
    module = uninitialized(config, dtype, task)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:
            _fill(parameter.view(-1), _stream(seed, name))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)  # else: the scale of a norm
    return module.eval()


def _stream(seed: int, name: str) -> np.random.SFC64:
    """A stream of random bits per parameter, so that no order of filling matters."""
    import numpy as np

    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.SFC64(int.from_bytes(digest[:16], "little"))


def _fill(weights: torch.Tensor, stream: np.random.SFC64) -> None:
    """Uniform numbers of the standard deviation wanted, four to a draw of 64 bits.

    That is four times as fast as torch's own generators, which are serial too; 65,536 different
    values are plenty here.
    """
    import numpy as np
    import torch

    scale = STANDARD_DEVIATION * 3**0.5 / 2**15
    for block in weights.split(_BLOCK):
        bits = stream.random_raw(-(-block.numel() // 4)).astype("<u8", copy=False)
        numbers = torch.from_numpy(bits.view(np.int16))[: block.numel()]
        block.copy_(numbers.float().mul_(scale))
