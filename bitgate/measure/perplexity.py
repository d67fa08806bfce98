"""Language-model quality: the quantized model's next-token scores beside the base's.

Both see the same tokens, so each window gives one paired observation: negative log-likelihoods,
KL(base || quantized) over the full vocabulary, and how often both prefer the same token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bitgate import statistics
from bitgate.kernels.served import Served
from bitgate.measure.measurement import Batch
from bitgate.measure.packing import packed_layers
from bitgate.measure.speed import timed
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bitgate.measure.measurement import Items
    from bitgate.sources import Windows

#: enough windows for bootstrap-t, whatever the dataset's `tokens`
LEAST_WINDOWS = 32
#: tokens of one forward pass: large enough to dequantize rarely, small enough for any laptop
TOKENS_PER_BATCH = 1024


class BaseScores(NamedTuple):
    """The base's scores of a batch; rows are the scored positions of its windows, in order."""

    nll: Tensor  #: float64 [windows]: summed negative log-likelihood, nats
    top1: Tensor  #: int64 [rows]: the likeliest token
    log_probs: Tensor  #: floating [rows, vocabulary]


class Base(Protocol):
    """Where the base's scores come from: a cache, or the base itself."""

    def scores(self, windows: Windows, start: int, stop: int) -> BaseScores:
        """Of windows `start` to `stop`."""
        ...


def paired_scores(quantized: Served, base: Base, text: Windows, tokens: int) -> PairedScores:
    """Score `text` with both models; at least `tokens` tokens before anything is judged."""
    return PairedScores(quantized, base, text, tokens)


class PairedScores:
    """One observation per window: `nll`, `base_nll`, `kl` in nats and `same_top1` in tokens, each
    summed over the `tokens` scored in it."""

    def __init__(self, quantized: Served, base: Base, text: Windows, tokens: int) -> None:
        self.quantized = quantized
        self.base = base
        self.text = text
        self.least = min(len(text), max(LEAST_WINDOWS, self._windows_for(tokens)))

    def _windows_for(self, tokens: int) -> int:
        scored = (self.text.tokens.shape[1] - self.text.scored).cumsum(0)
        return int((scored < tokens).sum()) + 1

    def batches(self) -> Iterator[Batch]:
        for start, stop in spans(self.text):
            base = self.base.scores(self.text, start, stop)
            tokens = self.text.tokens[start:stop]
            out: list[Tensor] = []
            seconds, _ = timed(lambda: out.append(self.quantized.logits(tokens)))  # noqa: B023
            yield Batch([seconds], self._compare(out.pop(), base, start, stop))

    def _compare(self, logits: Tensor, base: BaseScores, start: int, stop: int) -> dict[str, Any]:
        import torch
        from torch.nn.functional import kl_div

        base = BaseScores(*(tensor.to(logits.device) for tensor in base))
        columns: dict[str, list[Any]] = {
            key: []
            for key in ("window", "document", "tokens", "nll", "base_nll", "kl", "same_top1")
        }
        row = 0
        for at, window in enumerate(range(start, stop)):
            log_probs, targets = scored_rows(logits, self.text, start, window)
            rows = slice(row, row := row + len(targets))
            # window by window: what is worked on stays small enough to be near the processor
            with torch.inference_mode():
                kl = kl_div(
                    log_probs, base.log_probs[rows].float(), reduction="none", log_target=True
                ).sum(-1)
                nll = -log_probs.gather(1, targets[:, None]).double().sum()
                same = (log_probs.argmax(-1) == base.top1[rows]).sum()
            # the likeliest of all NaN is the first token, which may even agree
            known = bool(nll.isfinite() & base.nll[at].isfinite())
            columns["window"].append(window)
            columns["document"].append(int(self.text.document[window]))
            columns["tokens"].append(len(targets))
            columns["nll"].append(float(nll))
            columns["base_nll"].append(float(base.nll[at]))
            columns["kl"].append(float(kl.double().sum()))
            columns["same_top1"].append(int(same) if known else math.nan)
        return columns

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        import numpy as np

        tokens = np.asarray(items["tokens"], float)
        # dividing by the mean makes the plain mean over windows the mean over tokens
        nll, base_nll, kl = (
            np.asarray(items[key], float) / tokens.mean() for key in ("nll", "base_nll", "kl")
        )

        def over_windows(name: str, estimate: statistics.Estimate) -> Metric:
            interval = Interval(
                estimate.low, estimate.high, nominal, estimate.method, "window", estimate.n
            )
            return Metric(name, estimate.value, interval)

        return [
            over_windows("perplexity", statistics.student_t(nll, level).exp()),
            over_windows("base_perplexity", statistics.student_t(base_nll, level).exp()),
            over_windows("perplexity_ratio", statistics.student_t(nll - base_nll, level).exp()),
            over_windows("kl_divergence", _kl(kl, level)),
            over_windows(
                "top1_agreement", statistics.clustered_wilson(items["same_top1"], tokens, level)
            ),
            packed_layers(self.quantized),
        ]


def _kl(kl: np.ndarray, level: float) -> statistics.Estimate:
    """A KL divergence is never negative, but its interval might be by rounding."""
    estimate = statistics.bootstrap_t(kl, level)
    return estimate._replace(low=max(0.0, estimate.low)) if estimate.value >= 0 else estimate


def spans(text: Windows) -> Iterator[tuple[int, int]]:
    """Windows `start` to `stop` of each forward pass; the cache of base scores uses the same."""
    step = max(1, TOKENS_PER_BATCH // text.tokens.shape[1])
    for start in range(0, len(text), step):
        yield start, min(start + step, len(text))


def scored_rows(logits: Tensor, text: Windows, start: int, window: int) -> tuple[Tensor, Tensor]:
    """log-probabilities fp32 [rows, vocabulary] at a window's scored positions, and the tokens
    that stand there, int64 [rows]; `logits` [windows, length, vocabulary] begins at `start`."""
    import torch

    first = int(text.scored[window])
    with torch.inference_mode():
        before = logits[window - start, first - 1 : -1].float()
        log_probs = torch.log_softmax(before, -1)
    targets = text.tokens[window, first:].to(log_probs.device)
    return log_probs, targets
