"""What scoring costs beside the bare forward passes that cannot be avoided.

Everything is timed in one process, batch by batch in changing order, so that a busy machine
disturbs all of it alike; ratios are medians over batches.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[2]
MODEL, DATASET, RECIPE = "llama-smollm2-135m", "enwiki", "hqq-w4g64-rtn-dequantize"
LIMITS = {"perplexity alone": 1.15, "with KL divergence and top-1": 1.25}


def measure(threads: int, rounds: int) -> int:
    import torch

    from bitgate import quantize
    from bitgate.catalog import Execution, load
    from bitgate.measure.base import BaseModel
    from bitgate.measure.perplexity import PairedScores, scored_rows, spans
    from bitgate.sources import load_documents, load_model, windows

    torch.set_num_threads(threads)
    catalog = load(ROOT / "fixtures", quantize.recipe_types())
    model, dataset = catalog.models[MODEL], catalog.datasets[DATASET]
    recipe = catalog.recipes[RECIPE]
    loaded = load_model(model, device="cpu", dtype=torch.float32)
    text = windows(dataset, loaded.tokenizer, load_documents(dataset))
    execution = Execution("cpu", "float32", threads, "dequantize")
    hqq = quantize.method(recipe.method)
    served = hqq.quantize(loaded, recipe, torch.float32).serve(execution)
    base = BaseModel(loaded.module, execution, loaded.fingerprint)
    paired = PairedScores(served, base, text, dataset.tokens)
    batches = [span for span in spans(text) if span[1] <= paired.least]

    def bare(start: int, stop: int) -> None:
        served.logits(text.tokens[start:stop])

    def perplexity(start: int, stop: int) -> None:
        logits = served.logits(text.tokens[start:stop])
        for window in range(start, stop):
            of_targets = [
                log_probs.gather(1, targets[:, None])
                for log_probs, targets in scored_rows(logits, text, start, window)
            ]
            float(-torch.cat(of_targets).double().sum())

    def everything(start: int, stop: int) -> None:
        scores = base.scores(text, start, stop)
        paired._compare(served.logits(text.tokens[start:stop]), scores, start, stop)

    def base_forward(start: int, stop: int) -> None:
        base.logits(text.tokens[start:stop])

    with tempfile.TemporaryDirectory(prefix="bitgate-cost-") as empty:
        known = os.environ.get("BITGATE_CACHE")
        os.environ["BITGATE_CACHE"] = empty  # building is part of what is measured
        try:
            building = [_seconds(base.scores, text, *batch) for batch in batches]
            contenders: dict[str, Callable[[int, int], None]] = {
                "bare quantized forward passes": bare,
                "perplexity alone": perplexity,
                "with KL divergence and top-1": everything,
                "bare base forward passes": base_forward,
            }
            times: dict[str, list[float]] = {name: [] for name in contenders}
            orders = itertools.cycle(itertools.permutations(contenders))
            for _ in range(rounds):
                for batch in batches:
                    for name in next(orders):
                        times[name].append(_seconds(contenders[name], *batch))
        finally:
            os.environ.pop("BITGATE_CACHE")
            if known is not None:
                os.environ["BITGATE_CACHE"] = known
    return _report(times, building, int(text.scored_tokens * paired.least / len(text)))


def _seconds(run: Callable[..., object], *arguments: object) -> float:
    start = perf_counter()
    run(*arguments)
    return perf_counter() - start


def _report(times: dict[str, list[float]], building: list[float], tokens: int) -> int:
    from rich.console import Console
    from rich.table import Table

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))

    bare, base = "bare quantized forward passes", "bare base forward passes"
    per_pass = len(building)
    table = Table(title=f"{MODEL}, {RECIPE}, {tokens} tokens of {DATASET}", box=None)
    for column, justify in (
        ("what", "left"),
        ("s", "right"),
        ("ratio", "right"),
        ("limit", "right"),
    ):
        table.add_column(column, justify=justify)
    over = False
    for name in (bare, *LIMITS):
        seconds = per_pass * statistics.median(times[name])
        limit = LIMITS.get(name)
        found = ratio(name, bare)
        over |= limit is not None and found > limit
        table.add_row(name, f"{seconds:.1f}", f"{found:.3f}", f"{limit or ''}")
    table.add_row(base, f"{per_pass * statistics.median(times[base]):.1f}", "", "")
    cache = statistics.median(a / b for a, b in zip(building, times[base][:per_pass], strict=True))
    table.add_row(
        "building the cache of base scores, once", f"{sum(building):.1f}", f"{cache:.3f}", "of base"
    )
    Console(width=100).print(table)
    return 1 if over else 0
