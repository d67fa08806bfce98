"""`bitgate search`: a plan for a budget, by measured sensitivity of layers."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitgate.cli.asked import catalog_of, named
from bitgate.cli.shared import CATALOG, refuse, show

if TYPE_CHECKING:
    from bitgate.catalog import Catalog, Dataset, Model, Plan
    from bitgate.measure.search import Axis, Budget, Candidate
    from bitgate.quantize import ModelShapes

MIB = 2**20
ROWS = 14  #: of the table, beside those that were measured


@click.command()
@click.argument("model")
@click.option("--size", type=float, metavar="MIB", help="The saved file has at most so many MiB.")
@click.option(
    "--speedup", type=float, metavar="X", help="Decoding is predicted to be so many times as fast."
)
@click.option(
    "--perplexity-ratio",
    "ratio",
    type=click.FloatRange(min=1, min_open=True),
    metavar="R",
    help="The measured perplexity is at most R times the base's, to the end of its interval.",
)
@click.option(
    "--prefer",
    type=click.Choice(["size", "speed"]),
    help="What quality is traded for. Default: speed if --speedup is given, else size.",
)
@click.option(
    "--bits",
    "widths",
    type=click.Choice(["8", "4", "3", "2", "1"]),
    multiple=True,
    default=("8", "4"),
    show_default=True,
    help="A width that layers may get; give it once for each.",
)
@click.option(
    "--group-size", type=click.IntRange(min=8), default=64, show_default=True, help="Of all layers."
)
@click.option(
    "--slices",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Parts of the model's depth that get bits of their own.",
)
@click.option(
    "--text",
    default="enwiki-calibration",
    show_default=True,
    help="Dataset to measure on: never one that this model is scored on.",
)
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Windows of it for each layer alone; whole plans are measured on all.",
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    help="Whole plans along the front to measure, at most.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--name", help="Of the plan. Default: searched.")
@click.option(
    "--write",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Put the plan into this file, such as fixtures/plans.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole front as JSON.")
@CATALOG
def search(
    model: str,
    size: float | None,
    speedup: float | None,
    ratio: float | None,
    prefer: Axis | None,
    widths: tuple[str, ...],
    group_size: int,
    slices: int,
    text: str,
    windows: int,
    verify: int,
    device: str,
    threads: int,
    name: str | None,
    write: Path | None,
    as_json: bool,
    catalog: Path,
) -> None:
    """Find which layers of MODEL need more bits, and the best plan for a budget.

    \b
    Examples:
      bitgate search llama-smollm2-135m
      bitgate search llama-smollm2-135m --size 180
      bitgate search llama-smollm2-135m --perplexity-ratio 1.064 --prefer speed \\
          --name balanced --write fixtures/plans.toml

    Each kind of layer in each slice of the model is quantized alone (HQQ), at each width, and the
    KL divergence from the base that this causes is measured. Harms add up, nearly: so the front of
    best plans is walked from the finest to the cheapest, at each step lowering the bits that do
    least harm for what they save. Some of its plans are then quantized as a whole, and their
    perplexity is measured on the kernels that will serve them.

    Of the plans within --size and --speedup the one with the least harm is taken; with
    --perplexity-ratio the cheapest that is measured to be good enough. Without any of these the
    front is shown and nothing chosen.

    All measurements are kept in the cache: Ctrl-C loses only the one at hand, and another budget
    measures only plans not seen before. The plan records the text it was searched on: the matrix
    must not score it there.

    To use what was written, name it in fixtures/recipes.toml and fixtures/matrix.toml:

    \b
      [[recipe]]              # hqq-plan-balanced
      method = "hqq"
      plan = "balanced"

    Exit status 0; 1 if no plan is within the budget; 4 if something asked for is not there; 2 after
    Ctrl-C.
    """
    from bitgate.catalog import CatalogError
    from bitgate.cli.plan_file import refuse_unwritable
    from bitgate.kernels import KernelError
    from bitgate.measure.measurement import MeasureError
    from bitgate.measure.search import Budget
    from bitgate.quantize import QuantizeError
    from bitgate.quantize.lock import LockError, Locks
    from bitgate.sources import SourceError

    budget = Budget(size and size * MIB, speedup, ratio)
    wanted = any(limit is not None for limit in (size, speedup, ratio))
    axis: Axis = prefer or ("speed" if speedup else "size")
    try:
        if write and not wanted:
            raise CatalogError("--write: give --size, --speedup or --perplexity-ratio to choose by")
        called = _plan_name(name or "searched")
        known = catalog_of(catalog)
        entry, dataset = _checked(known, model, text)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise CatalogError(f"--device: expected auto, cpu, cuda or cuda:N, got {device!r}")
        bits = tuple(sorted({int(width) for width in widths}, reverse=True))
        _refuse_groups(bits, group_size, Locks.read(catalog).shapes(entry))
        if write is not None:
            refuse_unwritable(write)
        run = _Search(entry, dataset, bits, group_size, slices, windows, device, threads)
        found = run.candidates(called, axis, timed=axis == "speed" or speedup is not None)
        chosen = run.choose(found, budget, verify) if wanted else None
        run.verify(found, chosen, verify if ratio is None else 0)
    except (CatalogError, LockError, SourceError) as error:
        refuse(error)
    except (MeasureError, QuantizeError, KernelError) as error:
        refuse(error, 1)
    except KeyboardInterrupt:
        click.echo("interrupted: what was measured is kept, the same command goes on", err=True)
        sys.exit(2)
    _tell(found, chosen, as_json)
    if chosen is not None:
        plan = found[chosen].plan.model_copy(update={"searched_on": dataset})
        _hand_over(plan, found[chosen], entry, write, as_json)


def _plan_name(name: str) -> str:
    from bitgate.catalog import CatalogError

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise CatalogError(f"--name: {name!r} is no name: lower-case letters, digits, . _ -")
    return name


def _checked(catalog: Catalog, model: str, text: str) -> tuple[Model, Dataset]:
    """Both entries; a text is refused that the matrix scores this model on."""
    from bitgate.catalog import CatalogError, TextWorkload

    entry = named(catalog.models, model, "MODEL")
    dataset = named(catalog.datasets, text, "--text")
    for case in catalog.cases():
        if case.cell.model.name == model and isinstance(case.workload, TextWorkload):
            scored = case.workload.dataset
            if dataset.shares_text_with(scored):
                raise CatalogError(
                    f"--text: {text} may draw what {scored.name} scores, which {model} is gated "
                    f"on: {dataset.how_to_avoid(scored)}give another"
                )
    return entry, dataset


def _refuse_groups(widths: tuple[int, ...], group_size: int, shapes: ModelShapes | None) -> None:
    """A size of groups that hqq has not, or that does not fit a layer at one of the widths; of a
    model whose shapes are not known, only the former."""
    from bitgate.catalog import CatalogError, parse
    from bitgate.quantize.hqq_recipe import HqqRecipe
    from bitgate.quantize.misfits import GROUP_SIZES, refusal

    def first(size: int) -> str | None:
        """What is in the way of it."""
        for bits in widths:
            data = {"method": "hqq", "bits": bits, "group_size": size}
            recipe = parse(HqqRecipe, data, "--group-size")
            if shapes is not None:
                head = bits if shapes.head is not None else None
                recipe = recipe.model_copy(update={"head": head})
                if error := refusal(shapes, recipe, "cpu"):
                    return str(error).removeprefix(f"recipe {recipe.name}: ")
        return None

    if reason := first(group_size):
        near = sorted(GROUP_SIZES, key=lambda size: abs(math.log2(size / group_size)))
        fits = next((size for size in near if first(size) is None), None)
        remedy = "" if fits is None else f"; the nearest that fits is {fits}"
        raise CatalogError(f"--group-size: {reason}{remedy}")


class _Search:
    """Everything that has to be loaded and measured for it."""

    def __init__(
        self,
        entry: Model,
        dataset: Dataset,
        widths: tuple[int, ...],
        group_size: int,
        slices: int,
        windows: int,
        device: str,
        threads: int,
    ) -> None:
        import torch

        from bitgate.catalog import CatalogError, Execution
        from bitgate.measure.sensitivity import Sensitivity
        from bitgate.quantize.plans import units
        from bitgate.sources import load_documents, load_model, pick_device, serving_dtype
        from bitgate.sources import windows as cut

        device = pick_device(device)
        torch.set_num_threads(threads)
        dtype = serving_dtype(device)
        self.model = load_model(entry, device=device, dtype=dtype)
        if self.model.tokenizer is None:
            raise CatalogError(f"MODEL: {entry.name} has no tokenizer to read a text with")
        drawn = cut(dataset, self.model.tokenizer, load_documents(dataset))
        execution = Execution(device, str(dtype).removeprefix("torch."), threads, "torch")
        self.widths, self.group_size = widths, group_size
        self.sensitivity = Sensitivity(self.model, drawn, execution, _recipe, group_size, windows)
        _refuse_groups(widths, group_size, self.sensitivity.shapes)
        self.rules = units(self.sensitivity.shapes, slices)
        if not self.rules:
            raise CatalogError(f"MODEL: {entry.name} has no repeated blocks to tell apart")

    def candidates(self, name: str, axis: Axis, timed: bool) -> list[Candidate]:
        from bitgate.measure import search as searching
        from bitgate.measure.layer_times import layer_seconds
        from bitgate.quantize import method

        of = self.sensitivity
        rules = searching.units_with_head(self.rules, of.shapes)
        harms = of.measure(rules, self.widths)
        seconds = None
        if timed:
            seconds = layer_seconds(
                of.shapes.linears, self.widths, self.group_size, _recipe, of.execution
            )
        element = next(self.model.module.parameters()).element_size()

        def size(plan: Plan) -> Any:
            return method("hqq").predicted_bytes(of.shapes, _recipe(plan), "dequantize", element)

        costs = searching.Costs(of.shapes, self.group_size, size, seconds)
        numbers = of.shapes.others + sum(
            linear.out_features * (linear.in_features + linear.bias)
            for linear in of.shapes.linears
            if not (linear.name == of.shapes.head and of.shapes.tied)
        )
        return searching.candidates(name, axis, rules, harms, of.plan, costs, numbers * element)

    def choose(self, found: list[Candidate], budget: Budget, most: int) -> int:
        from bitgate.measure import search as searching

        if budget.ratio is None:
            return searching.best_within(found, budget)
        return searching.cheapest_within(found, budget, self.sensitivity.verify, max(1, most))

    def verify(self, found: list[Candidate], chosen: int | None, most: int) -> None:
        """Measure the chosen point, and others along the front."""
        from bitgate.measure.search import spread

        others = [at for at in spread(found, most) if at != chosen]
        for at in [*([] if chosen is None or not most else [chosen]), *others][:most]:
            found[at].measured = self.sensitivity.verify(found[at].plan)


def _recipe(plan: Plan) -> Any:
    from bitgate.quantize.hqq_recipe import HqqRecipe

    return HqqRecipe(plan=plan)


def _tell(found: list[Candidate], chosen: int | None, as_json: bool) -> None:
    from bitgate.measure.search import spread
    from bitgate.report.front import LEGEND, front_json, front_table

    if as_json:
        import json

        click.echo(json.dumps(front_json(found, chosen), indent=2))
        return
    measured = {at for at, one in enumerate(found) if one.measured}
    shown = measured | set(spread(found, ROWS)) | ({chosen} if chosen is not None else set())
    show(front_table(found, shown, chosen))
    show(LEGEND)


def _hand_over(
    plan: Plan, candidate: Candidate, model: Model, write: Path | None, as_json: bool
) -> None:
    from bitgate.cli.plan_file import plan_toml, write_plan

    comments = [f"found by bitgate search for {model.name}: {candidate.size_bytes / MIB:.1f} MiB"]
    if candidate.ratio is not None:
        comments.append(f"there, {candidate.ratio.text()}")
    if write is not None:
        try:
            write_plan(write, plan, comments)
        except OSError as error:  # since it was checked; the search is not to be lost
            click.echo(plan_toml(plan, comments), nl=False, err=as_json)
            refuse(f"{write} cannot be written: {error.strerror or error}")
        click.echo(f"{write}: [plan.{plan.name}] is written", err=True)
    elif not as_json:
        click.echo(plan_toml(plan, comments), nl=False)
