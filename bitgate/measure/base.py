"""The base: the unquantized model, as it would be served."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from bitgate.catalog import Execution
from bitgate.kernels.served import TorchServed
from bitgate.measure.base_scores import CachedScores, LiveScores
from bitgate.measure.perplexity import BaseScores

if TYPE_CHECKING:
    from torch import nn

    from bitgate.sources import Windows


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
        self._scores = CachedScores(LiveScores(self), identity, self.vocabulary)

    def scores(self, windows: Windows, start: int, stop: int) -> BaseScores:
        """Next-token scores of windows `start` to `stop`."""
        return self._scores.scores(windows, start, stop)


def _hardware(device: str) -> str:
    """The kind of device: two of one kind give the same scores."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
