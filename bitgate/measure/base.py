"""The base: the unquantized model, as it would be served."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from bitgate.catalog import Execution
from bitgate.kernels.continuations import Answer, Request
from bitgate.kernels.served import TorchServed
from bitgate.measure.base_answers import base_answers, base_output
from bitgate.measure.base_classes import base_logits
from bitgate.measure.base_scores import CachedScores, LiveScores
from bitgate.measure.perplexity import BaseScores

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitgate.sources import EncodedItems, Windows


class BaseModel(TorchServed):
    """Answers like any served model, and remembers the scores of texts on disk."""

    def __init__(self, module: nn.Module, execution: Execution, fingerprint: str) -> None:
        super().__init__(module, execution)
        identity = {
            "weights": fingerprint,
            "device": _hardware(execution.device),
            "dtype": execution.dtype,
            "attention": str(getattr(module.config, "_attn_implementation", "")),
            "torch": version("torch"),
            "transformers": version("transformers"),
        }
        self.identity = identity

    def scores(self, windows: Windows, start: int, stop: int) -> BaseScores:
        """Next-token scores of windows `start` to `stop`."""
        return CachedScores(LiveScores(self), self.identity, self.vocabulary).scores(
            windows, start, stop
        )

    def classes(self, items: EncodedItems, start: int, stop: int) -> Tensor:
        """Logits of labelled items `start` to `stop`, [stop - start, classes]."""
        return base_logits(self, self.identity, items, start, stop)

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """How likely it finds continuations of contexts."""
        return base_answers(self, self.identity, requests)

    def output(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """So many tokens that it generates greedily after a prompt."""
        return base_output(self, self.identity, prompt, tokens)


def _hardware(device: str) -> str:
    """The kind of device: two of one kind give the same scores."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
