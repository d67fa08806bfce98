"""How much harm each group of layers does when nothing else is quantized, and what a whole plan
does.

Sensitivity is the KL divergence from the base on a calibration text: never negative, and less noisy
than the perplexity that it predicts (as in llama.cpp's and HAWQ's mixed precision). Blocks before
the first that is quantized give what the base gave: that is kept, and only the rest is run.

Everything measured is remembered on disk by what determines it, so that a search that was
interrupted goes on, and one with another budget measures only plans not seen before.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.catalog import Execution, Plan, Recipe, Rule
from bitgate.kernels.served import TorchServed
from bitgate.measure.base import BaseModel
from bitgate.measure.perplexity import PairedScores, spans
from bitgate.metric import Metric
from bitgate.quantize import method, shapes_of
from bitgate.quantize.plans import HEAD, blocks_of, matches
from bitgate.quantize.selection import block_of
from bitgate.sources import once, track

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitgate.quantize.replaced import ReplacedModel
    from bitgate.sources import LoadedModel, Windows

FORMAT = 1
EVERYTHING_KEPT = Rule(layers=("*",), keep=True)
LEVEL = 0.98


class Sensitivity:
    """Of one model, on one text."""

    def __init__(
        self,
        model: LoadedModel,
        text: Windows,
        execution: Execution,
        recipe: Callable[[Plan], Recipe],
        group_size: int,
        windows: int,
    ) -> None:
        """`recipe` makes one of a plan; `windows` of the text tell single units apart, all of it
        whole plans."""
        self.model = model
        self.text = text
        self.execution = execution
        self.recipe = recipe
        self.group_size = group_size
        self.base = BaseModel(model.module, execution, model.fingerprint)
        self.shapes = shapes_of(model.module)
        self.blocks = blocks_of(self.shapes.select(("*",)))
        step = next(spans(text))[1]
        self.batches = -(-windows // step)  #: forward passes; at least one
        self._outputs: list[list[Any]] | None = None

    def plan(self, unit: str, rule: Rule | None, bits: int) -> Plan:
        """The plan that quantizes one unit alone: what a rule is for, or, without one, the head."""
        rules: tuple[Rule, ...] = (EVERYTHING_KEPT,)
        if rule is not None:
            rules += (rule.model_copy(update={"bits": bits, "keep": False}),)
        return Plan(
            name="unit",
            bits=bits,
            group_size=self.group_size,
            rules=rules,
            head=bits if unit == HEAD else None,
        )

    def measure(
        self, rules: Mapping[str, Rule | None], widths: tuple[int, ...]
    ) -> dict[str, dict[int, float]]:
        """By unit and bits: KL divergence in nats per token while nothing else is quantized."""
        found: dict[str, dict[int, float]] = {unit: {} for unit in rules}
        total = len(rules) * len(widths)
        with track("sensitivity of layers", total=total, unit="measurements") as task:
            for unit, rule in rules.items():
                for bits in widths:
                    found[unit][bits] = self._harm(self.plan(unit, rule, bits), rule)
                    task.advance()
        return found

    def _harm(self, plan: Plan, rule: Rule | None) -> float:
        def measure() -> dict[str, float]:
            quantized = self._quantize(plan)
            first = self._first_block(rule)
            tail = _Tail(quantized.module, self.blocks[:first], self._of_base(), self.execution)
            scores = PairedScores(tail, self.base, self.text, 1)
            items = _collect(islice(scores.batches(), self.batches))
            return {"kl": float(items["kl"].sum() / items["tokens"].sum())}

        return float(self._remember("sensitivity", plan, measure, self.batches)["kl"])

    def _first_block(self, rule: Rule | None) -> int:
        """The number of the first block that is quantized; all of them are before the head."""
        if rule is None:
            return len(self.blocks)
        inside = {block_of(name) for name in matches(rule, self.shapes, "search")}
        return next(at for at, block in enumerate(self.blocks) if block in inside)

    def _quantize(self, plan: Plan) -> ReplacedModel:
        recipe = self.recipe(plan)
        dtype = next(self.model.module.parameters()).dtype
        made: ReplacedModel = method(recipe.method).quantize(self.model, recipe, dtype)  # type: ignore[assignment]
        return made

    def _of_base(self) -> list[list[Any]]:
        """What each block of the base gives, by forward pass."""
        if self._outputs is None:
            self._outputs = []
            kept: list[Any] = []
            hooks = [
                self.model.module.get_submodule(block).register_forward_hook(
                    lambda _module, _inputs, output: kept.append(output)
                )
                for block in self.blocks
            ]
            try:
                with track("hidden states of the base", total=self.batches, unit="batches") as task:
                    for start, stop in islice(spans(self.text), self.batches):
                        kept = []
                        self.base.logits(self.text.tokens[start:stop])
                        self._outputs.append(kept)
                        task.advance()
            except BaseException:
                self._outputs = None
                raise
            finally:
                for hook in hooks:
                    hook.remove()
        return self._outputs

    def verify(self, plan: Plan) -> dict[str, Metric]:
        """All metrics of quality of the model quantized as a plan says, on the kernels that would
        serve it, over the whole text."""

        def measure() -> dict[str, Any]:
            with track(f"measuring {describe(plan)}"):
                quantized = self._quantize(plan)
                served = quantized.serve(self._on_its_kernel(quantized.recipe))
                scores = PairedScores(served, self.base, self.text, self.text.scored_tokens)
                metrics = scores.metrics(_collect(scores.batches()), LEVEL, LEVEL)
            return {metric.name: metric.record() for metric in metrics}

        records = self._remember("verified-plans", plan, measure, self.execution.device)
        return {name: Metric.of_record(name, record) for name, record in records.items()}

    def _on_its_kernel(self, recipe: Recipe) -> Execution:
        kernel = method(recipe.method).kernel(self.shapes, recipe, self.execution.device)
        fields = {field: getattr(self.execution, field) for field in ("device", "dtype", "threads")}
        return Execution(**fields, kernel=kernel)

    def _remember(
        self, area: str, plan: Plan, measure: Callable[[], dict[str, Any]], *more: Any
    ) -> dict[str, Any]:
        recipe = self.recipe(plan.model_copy(update={"name": "any", "searched_on": None}))
        key = [str(FORMAT), self.model.fingerprint, self.text.fingerprint, recipe.model_dump_json()]
        key += [f"{name} {version(name)}" for name in ("torch", "transformers", "bitgate")]

        def build(folder: Path) -> None:
            (folder / "measured.json").write_text(json.dumps(measure()), "utf-8")

        folder = once(area, *key, *map(str, more), build=build, label="search")
        found: dict[str, Any] = json.loads((folder / "measured.json").read_text("utf-8"))
        return found


class _Tail(TorchServed):
    """A model whose first blocks give what the base's gave, forward pass by forward pass."""

    def __init__(
        self,
        module: nn.Module,
        known: list[str],
        outputs: list[list[Any]],
        execution: Execution,
    ) -> None:
        super().__init__(module, execution)
        self.known = known
        self.passes = iter(outputs)

    def logits(self, tokens: Tensor) -> Tensor:
        for block, output in zip(self.known, next(self.passes), strict=False):
            # of this copy of the module only: the base's blocks are others
            self.module.get_submodule(block).forward = _giving(output)
        return super().logits(tokens)


def _giving(output: Any) -> Callable[..., Any]:
    def forward(*_inputs: Any, **_options: Any) -> Any:
        return output

    return forward


def _collect(batches: Iterator[Any]) -> dict[str, Any]:
    """The observations of all batches, column by column."""
    import numpy as np

    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for batch in batches:
        for name, values in batch.items.items():
            columns[name].extend(values)
    return {name: np.array(values) for name, values in columns.items()}


def describe(plan: Plan) -> str:
    """A plan in a line, for progress."""
    head = f", head {plan.head}" if plan.head else ""
    return f"{plan.bits} bits with {len(plan.rules)} rules{head}"
