"""A fine-tuned model in each of its states: as it was trained, merged, and deployed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.catalog import Execution, FinetuneWorkload, Recipe
from bitgate.kernels.served import TorchServed
from bitgate.measure.adapters import beside, merged, read_adapter
from bitgate.measure.measurement import MeasureError
from bitgate.measure.perplexity import scored_rows
from bitgate.measure.trained_adapter import TrainedAdapter, trained_adapter
from bitgate.quantize import method, recipe_types
from bitgate.quantize.replaced import ReplacedModel
from bitgate.sources import LoadedModel, Windows, once, track

if TYPE_CHECKING:
    import torch

    from bitgate.kernels.served import Served
    from bitgate.measure.training import Record
    from bitgate.quantize import Quantized

AREA = "tuned-scores"
FORMAT = 1
SCORES = "scores.json"


class Tuned:
    """What fine-tuning makes of a model; each state is made when it is asked for."""

    def __init__(
        self,
        model: LoadedModel,
        recipe: Recipe,
        quantized: Callable[[], Quantized],
        training: Windows,
        workload: FinetuneWorkload,
        execution: Execution,
    ) -> None:
        """`quantized` gives the untuned model quantized by `recipe`; `execution` is how the
        deployed model is served, and on what it is trained."""
        self.model = model
        self.recipe = recipe
        self.quantized = quantized
        self.training = training
        self.workload = workload
        self.execution = execution

    @property
    def _merges(self) -> bool:
        return self.workload.way == "merge"

    @property
    def record(self) -> Record:
        """How the adapter was trained."""
        return self._trained.record

    @cached_property
    def _start(self) -> Any:
        """What the adapter is trained on."""
        recipe = self._start_recipe
        if not self._merges:
            quantized = self.quantized()
            if not isinstance(quantized, ReplacedModel):
                raise MeasureError(
                    f"finetune {self.workload.name}: recipe {recipe.name}: no adapter can be "
                    'trained on a model that torch does not run: set way = "merge"'
                )
            return quantized
        return method(recipe.method).quantize(self.model, recipe, self._dtype)

    @property
    def _start_recipe(self) -> Recipe:
        if not self._merges:
            return self.recipe
        return recipe_types()["bitsandbytes"].model_validate({"type": "nf4"})

    @property
    def _dtype(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, self.execution.dtype)
        return found

    @cached_property
    def _trained(self) -> TrainedAdapter:
        return trained_adapter(
            lambda: self._start,
            self.model,
            self._start_recipe,
            self.training,
            self.workload,
            self.execution,
        )

    @cached_property
    def _adapter(self) -> Any:
        return read_adapter(self._trained.folder, self.execution.device, self._dtype)

    def _as_it_is(self, module: Any) -> TorchServed:
        return TorchServed(module, self.execution)

    @cached_property
    def merged(self) -> LoadedModel:
        """The adapter in the dequantized weights of what it was trained on: a plain model again."""
        known = json.dumps(["merged", *self._trained.key])
        return LoadedModel(
            module=merged(self.model.module, self._start.weights(), self._adapter),
            tokenizer=self.model.tokenizer,
            fingerprint=hashlib.sha256(known.encode()).hexdigest(),
            directory=None,
        )

    @cached_property
    def deployed(self) -> TorchServed:
        """The merged model quantized by the recipe, or the quantized model with the adapter beside
        its layers; on the kernel that `execution` names."""
        if self._merges:
            made = method(self.recipe.method).quantize(self.merged, self.recipe, self._dtype)
            return made.serve(self.execution)  # type: ignore[return-value]
        served: Any = self.quantized().serve(self.execution)
        return TorchServed(
            beside(served.module, self._adapter),
            self.execution,
            served.packed_layers,
            served.expected_layers,
            served.layer_classes,
        )

    def scores(self, text: Windows, start: int, stop: int) -> dict[str, list[float]]:
        """Summed negative log-likelihoods, nats, of windows `start` to `stop`, for each state that
        is not deployed: `base`, `start` (what the adapter was trained on), `tuned`, and `merged`
        (which tells what merging would do, where the adapter is kept). They are kept: no recipe of
        deployment changes them."""
        return {name: self._kept(name, text, start, stop) for name in self._states()}

    def _kept(self, state: str, text: Windows, start: int, stop: int) -> list[float]:
        def build(folder: Path) -> None:
            with track(f"scoring the {state} model, windows {start} to {stop - 1}"):
                found = window_nll(self._as_it_is(self._states()[state]()), text, start, stop)
            (folder / SCORES).write_text(json.dumps(found), "utf-8")

        key = (*self._trained.key, state, text.fingerprint, str(FORMAT))
        folder = once(AREA, *key, start, stop, build=build, label="tuned scores")
        kept: list[float] = json.loads((folder / SCORES).read_text("utf-8"))
        return kept

    def _states(self) -> dict[str, Callable[[], Any]]:
        return {
            "base": lambda: self.model.module,
            "start": lambda: self._start.module,
            "tuned": lambda: beside(self._start.module, self._adapter),
            "merged": lambda: self.merged.module,
        }


def window_nll(served: Served, text: Windows, start: int, stop: int) -> list[float]:
    """Summed negative log-likelihood of each window's scored tokens, nats, accumulated in fp64."""
    import torch

    logits = served.logits(text.tokens[start:stop])
    with torch.inference_mode():
        return [
            float(
                sum(
                    -log_probs.gather(1, targets[:, None]).double().sum()
                    for log_probs, targets in scored_rows(logits, text, start, window)
                )
            )
            for window in range(start, stop)
        ]
