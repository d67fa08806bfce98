"""Score a long text with several recipes, window by window, as `bench/test_perplexity.py` does.

    python tools/intervals/record.py 640 > tools/intervals/recorded.csv     (half an hour)

Each row is a window of `enwiki` (127 scored tokens) under one recipe. The scripts beside this one
take the rows as the population that a run's windows are drawn from. Rows hold scores and no text.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from bitgate.catalog import Execution, load
from bitgate.kernels.served import TorchServed
from bitgate.measure.base_scores import LiveScores
from bitgate.measure.perplexity import BaseScores, paired_scores
from bitgate.quantize import method, recipe_types, shapes_of
from bitgate.sources import Windows, load_documents, load_model, serving_dtype, windows

MODEL = "llama-smollm2-135m"
RECIPES = ("hqq-w8g64", "hqq-w4g64", "hqq-w3g64", "hqq-w4g32-dequantize")
FIXTURES = Path(__file__).parents[2] / "fixtures"
COLUMNS = ("document", "tokens", "nll", "base_nll", "kl", "same_top1")


class Latest:
    """A base that remembers the scores of the latest windows, so that all recipes share them."""

    def __init__(self, live: LiveScores) -> None:
        self.live = live
        self.at: tuple[int, int] | None = None
        self.held: BaseScores | None = None

    def scores(self, text: Windows, start: int, stop: int) -> BaseScores:
        if self.at != (start, stop) or self.held is None:
            self.at, self.held = (start, stop), self.live.scores(text, start, stop)
        return self.held


def rows(count: int) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Recipe, window and its scores."""
    catalog = load(FIXTURES, recipe_types())
    dataset = catalog.datasets["enwiki"]
    width = dataset.window - 1
    dataset = dataset.model_copy(update={"tokens_limit": count * width})
    dtype = serving_dtype("cpu")
    loaded = load_model(catalog.models[MODEL], dtype=dtype)
    text = windows(dataset, loaded.tokenizer, load_documents(dataset))
    base = Latest(
        LiveScores(TorchServed(loaded.module, Execution("cpu", "float32", 1, "torch", False)))
    )
    measurements = []
    for name in RECIPES:
        recipe = catalog.recipes[name]
        how = method(recipe.method)
        kernel = how.kernel(shapes_of(loaded.module), recipe, "cpu")
        quantized = how.quantize(loaded.module, recipe, dtype)
        served = quantized.serve(Execution("cpu", "float32", 1, kernel, False))
        measurements.append(paired_scores(served, base, text, dataset.tokens))
    for batches in zip(*(measurement.batches() for measurement in measurements), strict=True):
        for name, batch in zip(RECIPES, batches, strict=True):
            for i, window in enumerate(batch.items["window"]):
                yield name, int(window), {key: batch.items[key][i] for key in COLUMNS}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("recipe", "window", *COLUMNS))
    for recipe, window, scores in rows(int(sys.argv[1])):
        out.writerow((recipe, window, *(f"{value:.6g}" for value in scores.values())))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
