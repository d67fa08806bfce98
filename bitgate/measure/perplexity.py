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

#: enough windows for a t interval of skewed values, whatever the dataset's `tokens`
LEAST_WINDOWS = 32
#: tokens of one forward pass: large enough to dequantize rarely, small enough for any laptop
TOKENS_PER_BATCH = 1024
_BLOCK = 1 << 18  #: log-probabilities at a time on a CPU: 1 MiB


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
        self.most = len(text)

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

        base = BaseScores(*(tensor.to(logits.device) for tensor in base))
        columns: dict[str, list[Any]] = {
            key: []
            for key in ("window", "document", "tokens", "nll", "base_nll", "kl", "same_top1")
        }
        row = 0
        for at, window in enumerate(range(start, stop)):
            parts = []
            for log_probs, targets in scored_rows(logits, self.text, start, window):
                rows = slice(row, row := row + len(targets))
                with torch.inference_mode():
                    log_prob = log_probs.gather(1, targets[:, None])[:, 0]
                    same = likeliest(log_probs) == base.top1[rows]
                    of_base = base.log_probs[rows].to(torch.float32, copy=True)
                    # in place, as fresh memory costs more than the arithmetic
                    kl = torch.sub(of_base, log_probs, out=log_probs).mul_(of_base.exp_()).sum(-1)
                parts.append((log_prob, same, kl))
            log_prob, same, kl = (torch.cat(column) for column in zip(*parts, strict=True))
            nll = -log_prob.double().sum()
            # the likeliest of all NaN is the first token, which may even agree
            known = bool(nll.isfinite() & base.nll[at].isfinite())
            columns["window"].append(window)
            columns["document"].append(int(self.text.document[window]))
            columns["tokens"].append(len(log_prob))
            columns["nll"].append(float(nll))
            columns["base_nll"].append(float(base.nll[at]))
            columns["kl"].append(float(kl.double().sum()))
            columns["same_top1"].append(int(same.sum()) if known else math.nan)
        return columns

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        tokens = items["tokens"]
        # per token, one value of each window, whose plain mean is the mean over all tokens
        nll, base_nll, kl = (
            statistics.linearized(items[key], tokens) for key in ("nll", "base_nll", "kl")
        )

        def over_windows(name: str, estimate: statistics.Estimate) -> Metric:
            interval = Interval(
                estimate.low, estimate.high, nominal, estimate.method, "window", estimate.n
            )
            return Metric(name, estimate.value, interval)

        return [
            over_windows("perplexity", _alone(nll, level)),
            over_windows("base_perplexity", _alone(base_nll, level)),
            over_windows("perplexity_ratio", statistics.skewed_t(nll - base_nll, level).exp()),
            over_windows("kl_divergence", _kl(kl, level)),
            over_windows(
                "top1_agreement", statistics.clustered_share(items["same_top1"], tokens, level)
            ),
            packed_layers(self.quantized),
        ]


def _alone(nll: np.ndarray, level: float) -> statistics.Estimate:
    """The perplexity of one model, which no pairing makes symmetric: 32 windows may be so skewed
    that the allowance for skewness unseen reaches the correction's pole (docs/verdicts.md)."""
    return statistics.skewed_t(nll, level, unseen=1.0).exp()


def _kl(kl: np.ndarray, level: float) -> statistics.Estimate:
    """A KL divergence is never negative, but its interval might be by rounding."""
    estimate = statistics.skewed_t(kl, level)
    return estimate._replace(low=max(0.0, estimate.low)) if estimate.value >= 0 else estimate


def spans(text: Windows) -> Iterator[tuple[int, int]]:
    """Windows `start` to `stop` of each forward pass; the cache of base scores uses the same."""
    step = max(1, TOKENS_PER_BATCH // text.tokens.shape[1])
    for start in range(0, len(text), step):
        yield start, min(start + step, len(text))


def scored_rows(
    logits: Tensor, text: Windows, start: int, window: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """log-probabilities fp32 [rows, vocabulary] at a window's scored positions, in order, and the
    tokens that stand there, int64 [rows]; `logits` [windows, length, vocabulary] begins at `start`.

    On a CPU a few rows at a time, so that whoever goes over them again finds them in its cache;
    they share their memory, which may be written to, with the rows that follow.
    """
    import torch

    first = int(text.scored[window])
    before = logits[window - start, first - 1 : -1]
    targets = text.tokens[window, first:].to(logits.device)
    on_cpu = logits.device.type == "cpu"
    step = max(1, _BLOCK // logits.shape[-1]) if on_cpu else len(targets)
    with torch.inference_mode():
        memory = torch.empty_like(before[:step], dtype=torch.float32)
    for some, there in zip(before.split(step), targets.split(step), strict=True):
        with torch.inference_mode():
            log_probs = torch.log_softmax(some.float(), -1, out=memory[: len(some)])
        yield log_probs, there


def likeliest(log_probs: Tensor) -> Tensor:
    """The likeliest token of each row, int64 [rows]; the first of several. numpy's argmax says the
    same as torch's, of NaN too, and takes a tenth of the time."""
    import torch

    if log_probs.device.type == "cpu":
        return torch.from_numpy(log_probs.numpy().argmax(-1))
    return log_probs.argmax(-1)
