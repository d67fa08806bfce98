"""How many items of a task the quantized model answers right, beside the base.

Both are asked the same items, so each gives one paired observation. What is right is for lm-eval to
say: its task, its prompt, its scoring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from bitgate import statistics
from bitgate.catalog import TaskWorkload
from bitgate.kernels.continuations import Answer, Request, TooLongError, score
from bitgate.kernels.served import Served
from bitgate.measure.agreement import accuracies
from bitgate.measure.language_model import language_model
from bitgate.measure.measurement import Batch, MeasureError
from bitgate.measure.packing import packed_layers
from bitgate.measure.speed import timed
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    from bitgate.measure.measurement import Items
    from bitgate.sources import Questions

#: accuracy by log-likelihood over length, as what it is called here
NORMED = {
    "accuracy": "accuracy_norm",
    "accuracy_difference": "accuracy_norm_difference",
}


class Base(Protocol):
    """The base: its answers come from a cache, or from itself."""

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """How likely it finds continuations of contexts."""
        ...


def paired_answers(
    quantized: Served, base: Base, questions: Questions, workload: TaskWorkload
) -> PairedAnswers:
    """Ask both models, as many items at a time as the workload says."""
    return PairedAnswers(quantized, base, questions, workload)


class PairedAnswers:
    """One observation per item: `correct` and `base_correct`, 1 or 0, the same by log-likelihood
    per character (`_norm`) where the task has it, the log-likelihoods of all continuations as text,
    and that of the right one, in nats."""

    def __init__(
        self, quantized: Served, base: Base, questions: Questions, workload: TaskWorkload
    ) -> None:
        self.quantized = quantized
        self.base = base
        self.questions = questions
        self.workload = workload
        self.least = min(len(questions), workload.items)
        self.most = len(questions)

    def batches(self) -> Iterator[Batch]:
        tokenizer = self.questions.tokenizer
        own = language_model(partial(score, self.quantized), tokenizer)
        base = language_model(self.base.answers, tokenizer)
        batch = self.workload.batch
        for start in range(0, len(self.questions), batch):
            some = self.questions.items[start : start + batch]
            requests = [request for question in some for request in question.requests]
            out: list[Any] = []
            try:
                base_said = base.loglikelihood(requests, disable_tqdm=True)
                seconds, _ = timed(
                    lambda: out.extend(own.loglikelihood(requests, disable_tqdm=True))  # noqa: B023
                )
            except TooLongError as error:
                raise MeasureError(
                    f"task {self.workload.name}: {error}; choose a model with a longer one, or "
                    "another `task`"
                ) from error
            rows, at = [], 0
            for question in some:
                part = slice(at, at := at + len(question.requests))
                rows.append(self._compare(question, out[part], base_said[part]))
            yield Batch([seconds], {key: [row[key] for row in rows] for key in rows[0]})

    def _compare(self, question: Any, said: list[Any], base_said: list[Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"id": question.name}
        for prefix, answers in (("", said), ("base_", base_said)):
            values = [value for value, _ in answers]
            scores = self.questions.score(question, answers)
            if "acc" not in scores:
                raise MeasureError(
                    f"task {self.questions.task.task_name}: it has no `acc` to be judged by, only "
                    f"{', '.join(scores)}; choose another task"
                )
            # the likeliest of all NaN is the first one, which may even be right
            known = all(map(math.isfinite, values))
            row[f"{prefix}correct"] = float(scores["acc"]) if known else math.nan
            if "acc_norm" in scores:
                row[f"{prefix}correct_norm"] = float(scores["acc_norm"]) if known else math.nan
            target = question.target
            row[f"{prefix}log_likelihood"] = math.nan if target is None else values[target]
            row[f"{prefix}log_likelihoods"] = " ".join(f"{value:.6g}" for value in values)
        row["with_target"] = int(question.target is not None)
        return row

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        import numpy as np

        found = accuracies(items["correct"], items["base_correct"], level, nominal)
        if "correct_norm" in items:
            normed = accuracies(items["correct_norm"], items["base_correct_norm"], level, nominal)
            found += [replace(m, name=NORMED[m.name]) for m in normed if m.name in NORMED]
        if np.all(items["with_target"]):
            lost = items["base_log_likelihood"] - items["log_likelihood"]
            e = statistics.skewed_t(lost, level)
            interval = Interval(e.low, e.high, nominal, e.method, "item", e.n)
            found.append(Metric("target_nll_difference", e.value, interval))
        return [*found, packed_layers(self.quantized)]
