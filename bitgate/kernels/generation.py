"""Greedy text, token by token, by whatever serves the model."""

from __future__ import annotations

from collections.abc import Sequence

from bitgate.kernels.served import Served


def generate(served: Served, prompt: Sequence[int], output: int) -> list[int]:
    """The `output` likeliest tokens after a prompt, one after another; no token ends it sooner."""
    import torch

    served.prefill(torch.tensor([list(prompt)]), output)
    found = [int(served.upcoming[0])]
    while len(found) < output:
        found.append(int(served.decode_step()[0]))
    return found
