"""How often a verdict is wrong when the truth lies on the bound.

The recorded windows are taken as the whole text. Each metric's bound is set to the text's own
value, and random subsets of its windows, as many as a run may score, are judged by the gates
themselves, looks included: every verdict but `inconclusive` is then wrong. Where the truth is not
on the bound but beyond it or short of it, errors are rarer.

A subset is drawn without replacement from a finite text, so its mean varies less than that of as
many windows of endless text, by sqrt(1 - share drawn): 18 % for 64 of 192. That flatters the
result, so windows are drawn with replacement too, as from a text that goes on like this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
from populations import Array, recorded

from bitgate.gates.decide import decide
from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.measure.measurement import Batch
from bitgate.measure.perplexity import LEAST_WINDOWS, PairedScores

BATCH = 8  #: windows of a forward pass over `enwiki`
WINDOWS = 64  #: that a run may score: `tokens_limit` of enwiki
ALLOWED = 0.02
METRICS = {"perplexity": "max", "perplexity_ratio": "max", "kl_divergence": "max"} | {
    "top1_agreement": "min"
}


class Subset(PairedScores):
    """Windows that have been scored before."""

    def __init__(self, columns: dict[str, Array]) -> None:
        self.columns = columns
        self.most = len(columns["tokens"])
        self.least = min(LEAST_WINDOWS, self.most)
        self.quantized = SimpleNamespace(packed_layers=0, expected_layers=0)  # type: ignore[assignment]

    def batches(self) -> Iterator[Batch]:
        for start in range(0, self.most, BATCH):
            part = slice(start, start + BATCH)
            yield Batch([0.0], {name: values[part] for name, values in self.columns.items()})


def rates(
    columns: dict[str, Array], metric: str, windows: int, subsets: int, *, replace: bool = False
) -> tuple[float, float, float]:
    """Shares of wrong fails and wrong passes, and the mean number of windows scored.

    With `replace`, windows are drawn as from an endless text that goes on like this one.
    """
    text = Subset(columns)
    items = {name: values.astype(float) for name, values in columns.items()}
    truth = next(m.value for m in text.metrics(items, 0.98, 0.98) if m.name == metric)
    bound = Bound.model_validate({METRICS[metric]: truth})
    rules = {metric: Rule(metric, "the text's own value", "verdicts.py", bound)}
    rng = np.random.default_rng(0)
    outcomes, scored = [], 0
    for _ in range(subsets):
        chosen = rng.choice(text.most, windows, replace=replace)
        subset = Subset({name: values[chosen] for name, values in columns.items()})
        decision = decide(subset, rules)
        outcomes.append(decision.verdicts[0].outcome)
        scored += len(decision.items["tokens"])
    wrong = [outcomes.count(outcome) / subsets for outcome in ("fail", "pass")]
    return wrong[0], wrong[1], scored / subsets


def report(subsets: int) -> bool:
    """Print the table; whether every rate of every metric is within what is allowed."""
    text, good = recorded(), True
    print(f"\nWrong verdicts, bound = truth: {subsets} subsets of {WINDOWS} windows a recipe")
    for replace in (False, True):
        drawn = "with replacement" if replace else "as they are"
        for metric in METRICS:
            found = {
                recipe: rates(columns, metric, WINDOWS, subsets, replace=replace)
                for recipe, columns in text.items()
            }
            for recipe, (fail, passed, scored) in found.items():
                total = len(text[recipe]["tokens"])
                print(
                    f"  {metric:16} {recipe:20} of {total}, {drawn}: fail {fail:.2%}, "
                    f"pass {passed:.2%} ({scored:.0f} windows scored)"
                )
            fail, passed, _ = np.mean(list(found.values()), axis=0)
            good &= max(fail, passed) <= ALLOWED
            print(f"  {metric:16} all, {drawn}: fail {fail:.2%}, pass {passed:.2%}")
    return bool(good)
