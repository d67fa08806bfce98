"""Recipes that cannot be made of a model, found from its shapes before anything is loaded, and the
nearest recipes that can."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bitgate import kernels
from bitgate.catalog import Cadence, Catalog, Cell, Dataset, Plan, Recipe, Rule
from bitgate.kernels import KernelError, NotHereError
from bitgate.quantize import checkpoint, method
from bitgate.quantize.checkpoint import CheckpointRecipe
from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.lock import Locks
from bitgate.quantize.shapes import ModelShapes

#: tried in place of a group size that does not fit
GROUP_SIZES = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Misfit:
    """A cell that cannot be measured anywhere; `place` is the entry of the matrix that asks."""

    place: str
    cell: Cell
    recipe_place: str
    reason: str
    nearest: tuple[Recipe, ...]
    #: names of the recipes that the catalog has
    known: frozenset[str]

    def __str__(self) -> str:
        model, recipe = self.cell.model.name, self.cell.recipe.name
        what = f"{self.place}: {model} cannot be quantized by recipe {recipe}"
        lines = [f"{what} ({self.recipe_place}): {self.reason}"]
        if not self.nearest and _plan_of(self.cell.recipe) is not None:
            lines.append("no other size of its groups works")
        elif not self.nearest and not brings_weights(self.cell.recipe):
            lines.append(f"no recipe of method {self.cell.recipe.method} near it works")
        for number, near in enumerate(self.nearest):
            lead = "the nearest that works is" if number == 0 else "or"
            lines.append(f'{lead} "{near.name}"{_edit(self.cell.recipe, near)}')
            if near.name not in self.known:
                lines[-1] += ", with this in recipes.toml:"
                lines += ["", "  [[recipe]]", *(f"  {line}" for line in written(near)), ""]
        return "\n  ".join(lines).rstrip()


def misfits(
    catalog: Catalog, cadence: Cadence, locks: Locks, device: str
) -> tuple[list[Misfit], list[str]]:
    """The cells due that no device can serve, and the models whose shapes are not known.

    A recipe that only `device` cannot serve, and another can, is left to the run.
    """
    found: list[Misfit] = []
    unknown: dict[str, None] = {}
    for place, cell in catalog.cells(cadence):
        written_in = catalog.recipe_places.get(cell.recipe.name, "")
        if isinstance(cell.recipe, CheckpointRecipe):
            if reason := checkpoint.misfit(cell.recipe, cell.model):
                reason = reason.removeprefix(f"recipe {cell.recipe.name}: ")
                found.append(Misfit(place, cell, written_in, reason, (), frozenset()))
            continue
        shapes = locks.shapes(cell.model)
        if shapes is None:
            unknown[cell.model.name] = None
            continue
        reason = _everywhere(shapes, cell.recipe, device)
        if reason is None:
            continue
        near = tuple(nearest(shapes, cell.recipe, catalog.recipes.values(), device))
        known = frozenset(recipe.name for recipe in near if recipe.name in catalog.recipes)
        found.append(Misfit(place, cell, written_in, reason, near, known))
    return found, list(unknown)


def brings_weights(recipe: Recipe) -> bool:
    """Whether the recipe names quantized weights of its own: only they say what they are."""
    return "source" in type(recipe).model_fields


def refusal(shapes: ModelShapes, recipe: Recipe, device: str) -> Exception | None:
    """Why a recipe cannot be made or served; None if it can."""
    try:
        method(recipe.method).kernel(shapes, recipe, device)
    except (QuantizeError, KernelError) as error:
        return error
    return None


def _everywhere(shapes: ModelShapes, recipe: Recipe, device: str) -> str | None:
    """Why the layers are in the way of a recipe, whatever the device; None if one takes them, or if
    only devices and libraries are in the way."""
    reasons = []
    for asked in (device, *(other for other in kernels.DEVICES if other != device)):
        error = refusal(shapes, recipe, asked)
        if error is None:
            return None
        if not isinstance(error, NotHereError):
            reasons.append(str(error).removeprefix(f"recipe {recipe.name}: "))
    return reasons[0] if reasons else None


def nearest(
    shapes: ModelShapes, recipe: Recipe, known: Iterable[Recipe], device: str
) -> Iterator[Recipe]:
    """The recipe that works and differs least: first in bits, then in the group's size, then in
    how many other keys; where it has not the kernel that was forced, the nearest that has, too.

    A recipe with a plan is near to none without, or with another: it may be this plan, edited.
    """
    catalogued = [
        other
        for other in known
        if other.method == recipe.method and _plan_of(other) == _plan_of(recipe)
    ]
    variations = (*_variations(recipe, catalogued), *catalogued)
    tried = {(one.name, _group_sizes(one)): one for one in variations}
    tried.pop((recipe.name, _group_sizes(recipe)), None)
    names = {other.name for other in catalogued}
    ordered = sorted(
        (one for one in tried.values() if not brings_weights(one)),
        key=lambda one: (*_distance(recipe, one), one.name not in names, one.name),
    )
    best: Recipe | None = None
    for one in ordered:  # a few of many are asked
        if best is not None and one.kernel != recipe.kernel:
            continue
        error = refusal(shapes, one, device)
        # a kernel that was forced may be on another device: that is what the run finds out
        if error is None or (isinstance(error, NotHereError) and one.kernel == recipe.kernel):
            yield one
            if one.kernel == recipe.kernel:
                return
            best = one


def _variations(recipe: Recipe, others: Iterable[Recipe]) -> Iterator[Recipe]:
    """The recipe with other group sizes, and left to choose its kernel."""
    there = {size for other in others for size in _group_sizes(other) if size is not None}
    given = {key: getattr(recipe, key) for key in recipe.model_fields_set}
    for changed in _regrouped(recipe, sorted({*GROUP_SIZES, *there})):
        for kernel in dict.fromkeys((recipe.kernel, "auto")):
            try:
                yield type(recipe).model_validate({**given, **changed, "kernel": kernel})
            except ValidationError:  # the method has no such groups
                continue


def _regrouped(recipe: Recipe, sizes: Iterable[int]) -> Iterator[dict[str, Any]]:
    """What changes where groups get other sizes, from nothing on: the recipe's, or in its plan one
    size that it gives, wherever it does, or all of them."""
    yield {}
    plan = _plan_of(recipe)
    present = {size for size in _group_sizes(recipe) if size is not None}
    for size in sizes:
        if plan is None:
            yield from ({"group_size": size} for _ in present - {size})
            continue
        for old in dict.fromkeys((*(frozenset({one}) for one in present), frozenset(present))):
            (key,) = type(recipe).planned_by
            yield {key: _with_groups(plan, old, size)}


def _with_groups(plan: Plan, old: frozenset[int], size: int) -> Plan:
    def changed(entry: Plan | Rule) -> dict[str, int]:
        return {"group_size": size} if entry.group_size in old else {}

    rules = tuple(rule.model_copy(update=changed(rule)) for rule in plan.rules)
    return plan.model_copy(update={**changed(plan), "rules": rules})


def _plan_of(recipe: Recipe) -> Plan | None:
    found = (getattr(recipe, key) for key in type(recipe).planned_by)
    return next((plan for plan in found if isinstance(plan, Plan)), None)


def _group_sizes(recipe: Recipe) -> tuple[int | None, ...]:
    """A recipe's; or its plan's, and that of each of the plan's rules."""
    plan = _plan_of(recipe)
    if plan is None:
        return (recipe.group_size,)
    return (plan.group_size, *(rule.group_size for rule in plan.rules))


def _edit(recipe: Recipe, near: Recipe) -> str:
    """What to write in a recipe's plan to make the other one of it; nothing where it is kept."""
    plan, pairs = _plan_of(recipe), zip(_group_sizes(recipe), _group_sizes(near), strict=False)
    changed = {number: pair for number, pair in enumerate(pairs) if pair[0] != pair[1]}
    if plan is None or not changed:
        return ""
    (size,) = {new for _, new in changed.values()}
    old = " and ".join(map(str, sorted({old for old, _ in changed.values() if old is not None})))
    rules = "".join(f", rule {number}" for number in changed if number)
    where = plan.place + (rules if 0 in changed else f": {rules.removeprefix(', ')}")
    return f", with group_size = {size} in place of {old} ({where})"


def _distance(recipe: Recipe, other: Recipe) -> tuple[float, float, int]:
    bits = abs((recipe.bits or 0) - (other.bits or 0))
    sizes = zip(_group_sizes(recipe), _group_sizes(other), strict=False)
    ratio = sum(abs(math.log2((one or 1) / (two or 1))) for one, two in sizes)
    compared = type(recipe).model_fields.keys() - {"bits", "group_size"}
    others = sum(getattr(recipe, key) != getattr(other, key, None) for key in compared)
    return bits, ratio, others


def written(recipe: Recipe) -> list[str]:
    """A recipe as TOML, a key a line, without those that have their default."""
    fields = type(recipe).model_fields
    keys = {key: getattr(recipe, key) for key in fields}
    shown = {
        key: value
        for key, value in keys.items()
        if key == "method" or (value is not None and value != fields[key].get_default())
    }
    return [f"{key} = {_toml(value)}" for key, value in shown.items()]


def _toml(value: Any) -> str:
    return json.dumps(value.name if isinstance(value, Dataset | Plan) else value, default=str)
