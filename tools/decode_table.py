"""Decode speed of a model's forms beside each other: unquantized in float32 and bfloat16, HQQ at
4 bits with the head packed too, and llama.cpp's Q4_0, whose head has 6 or 8 bits.

    python tools/decode_table.py llama-smollm2-135m llama-3.2-1b-shape --compiled

All take turns in one process, on one thread; ratios are medians over rounds, by wall and CPU clock.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from bitgate.catalog import Execution, load_entries
from bitgate.kernels.served import Served, TorchServed
from bitgate.measure.speed import timed
from bitgate.quantize import method, recipe_types, shapes_of
from bitgate.sources import load_model

ROOT = Path(__file__).parents[1]
PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4, help="decoded in each turn")
    parser.add_argument("--compiled", action="store_true", help="torch's steps compiled, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models:
        served = forms(model, options.compiled)
        write(model, take_turns(served, options.rounds, options.steps))


def forms(name: str, compiled: bool) -> dict[str, Served]:
    catalog = load_entries(ROOT / "fixtures", recipe_types())
    made: dict[str, Served] = {}
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_model(catalog.models[name], dtype=dtype)
        kind = str(dtype).removeprefix("torch.")
        variants = {kind: Execution("cpu", kind, 1, "torch")}
        if compiled:
            variants[f"{kind}, compiled"] = Execution("cpu", kind, 1, "torch", compiled=True)
        made |= {how: TorchServed(loaded.module, execution) for how, execution in variants.items()}
        if dtype is not torch.float32:
            continue
        for recipe in ("hqq-w4g64-head4-rtn", "gguf-q4_0"):
            how = method(catalog.recipes[recipe].method)
            quantized = how.quantize(loaded, catalog.recipes[recipe], dtype)
            kernel = how.kernel(shapes_of(loaded.module), catalog.recipes[recipe], "cpu")
            made[recipe] = quantized.serve(Execution("cpu", kind, 1, kernel))
            if compiled and kernel != "llama.cpp":
                execution = Execution("cpu", kind, 1, kernel, compiled=True)
                made[f"{recipe}, compiled"] = quantized.serve(execution)
    return made


def take_turns(
    served: dict[str, Served], rounds: int, steps: int
) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of every turn."""
    prompt = torch.randint(0, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    for one in served.values():
        one.prefill(prompt, (rounds + 1) * steps)
        for _ in range(steps):
            one.decode_step()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in served}
    names = list(served)
    for number in range(rounds):
        first = number % len(names)  # whoever begins a round changes
        for name in names[first:] + names[:first]:
            step = served[name].decode_step
            wall, cpu = timed(lambda step=step: [step() for _ in range(steps)])  # type: ignore[misc]
            seen[name].append((wall / steps, cpu / steps))
    return seen


def write(model: str, seen: dict[str, list[tuple[float, float]]]) -> None:
    print(f"\n{model}: token/s (wall), and times as fast as ... (wall / CPU)")
    others = ("float32", "bfloat16", "gguf-q4_0")
    print(f"{'':32}{'token/s':>9}" + "".join(f"{other:>15}" for other in others))
    for name, turns in seen.items():
        cells = ""
        for other in others:
            pairs = list(zip(seen[other], turns, strict=True))
            wall, cpu = (statistics.median(b[at] / a[at] for b, a in pairs) for at in (0, 1))
            cells += f"{wall:>8.2f} /{cpu:5.2f}"
        print(f"{name:32}{1 / statistics.median(t[0] for t in turns):>9.1f}{cells}", flush=True)


if __name__ == "__main__":
    main()
