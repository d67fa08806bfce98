"""How much of a greedy summary stays the same after quantizing, by ROUGE.

ROUGE-1 and ROUGE-2 are F1 of the unigrams and bigrams that two texts share, ROUGE-L that of their
longest common subsequence of words (Lin, Text Summarization Branches Out, 2004, 74-81), by the
rouge-score package: lower case, only letters a to z and digits, no stemming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from bitgate import statistics
from bitgate.catalog import RougeWorkload
from bitgate.kernels.generation import generate
from bitgate.kernels.served import Served
from bitgate.measure.measurement import Batch, MeasureError
from bitgate.measure.packing import packed_layers
from bitgate.measure.speed import timed
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    import numpy as np

    from bitgate.measure.measurement import Items
    from bitgate.sources import Prompts

KINDS = ("rouge1", "rouge2", "rougeL")


class Base(Protocol):
    """The base: its summaries come from a cache, or from itself."""

    def output(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """So many tokens that it generates greedily after a prompt."""
        ...


def rouge(reference: str, text: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of a text against a reference, F1 from 0 to 1; 1 for the very
    same text, also where it has no word."""
    if reference == text:
        return dict.fromkeys(KINDS, 1.0)
    scores = _scorer().score(reference, text)
    return {kind: float(scores[kind].fmeasure) for kind in KINDS}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(KINDS), use_stemmer=False)


def paired_summaries(
    quantized: Served, base: Base, prompts: Prompts, workload: RougeWorkload
) -> PairedSummaries:
    """Summarize the documents of `prompts` with both models.

    Raises:
        MeasureError: if a prompt and its summary do not fit into the model's context.
    """
    return PairedSummaries(quantized, base, prompts, workload)


class PairedSummaries:
    """One observation per document: ROUGE of the quantized model's summary against the base's, and
    that of both against the reference, if there is one; the summaries beside them."""

    def __init__(
        self, quantized: Served, base: Base, prompts: Prompts, workload: RougeWorkload
    ) -> None:
        self.quantized = quantized
        self.base = base
        self.prompts = prompts
        self.output = workload.output
        self.least = min(len(prompts), workload.documents)
        self.most = len(prompts)
        longest = max(map(len, prompts.tokens))
        if quantized.context is not None and longest + self.output > quantized.context:
            raise MeasureError(
                f"rouge {workload.name}: a prompt of {longest} tokens and an output of "
                f"{self.output} do not fit into the model's context of {quantized.context}; lower "
                "`characters` or `output`"
            )

    def batches(self) -> Iterator[Batch]:
        for at, prompt in enumerate(self.prompts.tokens):
            base = self.base.output(prompt, self.output)
            out: list[int] = []
            seconds, _ = timed(
                lambda: out.extend(generate(self.quantized, prompt, self.output))  # noqa: B023
            )
            row = self._compare(at, out, base)
            yield Batch([seconds], {key: [value] for key, value in row.items()})

    def _compare(self, at: int, own: list[int], base: list[int]) -> dict[str, Any]:
        summary, base_summary = self.prompts.read(own), self.prompts.read(base)
        row: dict[str, Any] = {"id": self.prompts.names[at], **rouge(base_summary, summary)}
        if self.prompts.references is not None:
            reference = self.prompts.references[at]
            for prefix, text in (("", summary), ("base_", base_summary)):
                scores = rouge(reference, text)
                row |= {f"{prefix}{kind}_reference": scores[kind] for kind in KINDS}
        return {**row, "summary": summary, "base_summary": base_summary}

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        found = [_share(kind, items[kind], level, nominal) for kind in KINDS]
        for kind in KINDS:
            name = f"{kind}_reference"
            if name in items:
                own, base = items[name], items[f"base_{name}"]
                found.append(_share(name, own, level, nominal))
                e = statistics.skewed_t(own - base, level)
                low, high = max(-1.0, e.low), min(1.0, e.high)
                interval = Interval(low, high, nominal, e.method, "document", e.n)
                found.append(Metric(f"{name}_difference", e.value, interval))
        return [*found, packed_layers(self.quantized)]


def _share(name: str, values: np.ndarray, level: float, nominal: float) -> Metric:
    """The mean of values from 0 to 1 by Wilson's interval, which is wider than it need be: their
    variance is at most that of as many yes or no. Others cover too seldom where most documents are
    unchanged, and few are seen (docs/workloads/generation.md)."""
    mean, count = float(values.mean()), len(values)
    low, high = statistics.wilson(mean, count, level)
    return Metric(name, mean, Interval(low, high, nominal, "Wilson at most", "document", count))
