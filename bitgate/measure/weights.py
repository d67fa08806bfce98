"""How far the quantized weights are from the base's, layer by layer: exact, and without any text.

A fault in one layer of two hundred is lost in the noise of a text's perplexity; here it stands
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

#: numbers of a weight that are worked on at once: what fits the processor's cache
BLOCK = 2**18


def weight_errors(base: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """||W - Q|| / ||W|| of each layer by name: the relative error of its weights Q in the Frobenius
    norm, accumulated in float64; not finite if a weight is not.

    `weights` are the quantized layers' names and dequantized weights, shaped as the base's.
    """
    return {
        name: _relative_error(base.get_submodule(name).weight, weight) for name, weight in weights
    }


def _relative_error(weight: Tensor, quantized: Tensor) -> float:
    missed = total = 0.0
    for w, q in zip(_blocks(weight), _blocks(quantized), strict=True):
        w = w.float()
        total += float(w.square().sum())
        missed += float((w - q.float()).square_().sum())
    return (missed / total) ** 0.5 if total else float(missed > 0)


def _blocks(weight: Tensor) -> tuple[Tensor, ...]:
    rows = weight.detach().flatten(1)
    found: tuple[Tensor, ...] = rows.split(max(1, BLOCK // rows.shape[1]))
    return found
