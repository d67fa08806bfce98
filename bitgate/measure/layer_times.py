"""How long a single layer takes for one row: what a plan's speed is predicted from.

Each layer is one of several of its shape that are run in turn, as in a model, so that weights come
from memory and not from a cache that a layer run again and again would find them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from platform import node
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from bitgate.catalog import Execution, Plan, Recipe
from bitgate.quantize import LinearShape, method, shapes_of
from bitgate.sources import LoadedModel, once, track

if TYPE_CHECKING:
    from torch import nn

#: bytes of float32 weights that layers run in turn have together, at least
BEYOND_CACHES = 128 * 2**20
MOST_COPIES = 48  #: of small layers, whose time is spent elsewhere
REPEATS = 7

#: outputs, inputs, and bits; None for the base's own layer
Shape = tuple[int, int, int | None]


def layer_seconds(
    linears: Iterable[LinearShape],
    widths: Iterable[int],
    group_size: int,
    recipe: Callable[[Plan], Recipe],
    execution: Execution,
) -> dict[Shape, float]:
    """Seconds for one row, of each shape among the layers at each of the widths, and of the base;
    random weights, on the kernel that would serve them, in the execution's dtype and threads.

    They are remembered on disk, for this machine: timed anew, they would lead to another front, of
    whose plans none has been measured.
    """
    shapes = {(linear.out_features, linear.in_features): None for linear in linears}
    wanted: list[int | None] = [None, *widths]
    found: dict[Shape, float] = {}
    total = len(shapes) * len(wanted)
    with track("time of layers", total=total, unit="layers") as task:
        for rows, columns in shapes:
            for bits in wanted:
                plan = Plan(name="layer", bits=bits, group_size=group_size) if bits else None
                made = recipe(plan) if plan else None
                found[rows, columns, bits] = _remembered(rows, columns, made, execution)
                task.advance()
    return found


def _remembered(rows: int, columns: int, recipe: Recipe | None, execution: Execution) -> float:
    def build(folder: Path) -> None:
        layers = _layers(rows, columns, execution)
        if recipe is not None:
            layers = _quantized(layers, recipe, execution)
        (folder / "seconds").write_text(repr(_seconds(layers, columns, execution)), "utf-8")

    key = [node(), str(execution), f"{rows} {columns}", f"torch {version('torch')}"]
    key.append("base" if recipe is None else recipe.model_dump_json())
    folder = once("layer-times", *key, build=build, label="search")
    return float((folder / "seconds").read_text("utf-8"))


def _layers(rows: int, columns: int, execution: Execution) -> nn.Module:
    import torch
    from torch import nn

    copies = max(2, min(MOST_COPIES, BEYOND_CACHES // (4 * rows * columns)))
    dtype = getattr(torch, execution.dtype)
    layers = nn.Sequential(
        *(
            nn.Linear(columns, rows, bias=False, device=execution.device, dtype=dtype)
            for _ in range(copies)
        )
    )
    return layers.eval().requires_grad_(False)


def _quantized(base: nn.Module, recipe: Recipe, execution: Execution) -> nn.Module:
    import torch

    how = method(recipe.method)
    model = LoadedModel(base, None, "random", None)
    made = how.quantize(model, recipe, getattr(torch, execution.dtype))
    kernel = how.kernel(shapes_of(base), recipe, execution.device)
    fields = {field: getattr(execution, field) for field in ("device", "dtype", "threads")}
    served = made.serve(Execution(**fields, kernel=kernel))
    module: nn.Module = served.module  # type: ignore[attr-defined]
    return module


def _seconds(layers: nn.Module, columns: int, execution: Execution) -> float:
    """The median over rounds, in each of which every layer runs once."""
    import torch

    dtype = getattr(torch, execution.dtype)
    row = torch.randn(1, columns, device=execution.device).to(dtype)
    wait = torch.cuda.synchronize if execution.device.startswith("cuda") else lambda: None
    parts = list(layers.children())
    times = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            wait()
            start = perf_counter()
            for layer in parts:
                layer(row)
            wait()
            times.append((perf_counter() - start) / len(parts))
    return median(times[1:])  # the first one warms up
