"""What a recipe of method `hqq` may say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bitgate import kernels
from bitgate.catalog import Dataset, Plan, Recipe, Rule
from bitgate.quantize.selection import SelectiveRecipe, no_flag

Bits = Annotated[Literal[8, 4, 3, 2, 1], BeforeValidator(no_flag)]
BITS = (8, 4, 3, 2, 1)
GROUPS_OF = 8  #: a group's size is a multiple of it


class HqqRecipe(SelectiveRecipe):
    """Keys of a `[[recipe]]` with `method = "hqq"`."""

    method: Literal["hqq"] = "hqq"
    bits: Bits | None = None
    group_size: Annotated[int, Field(gt=0, multiple_of=GROUPS_OF)] | None = None
    plan: Plan | None = Field(
        None, description="instead of both: which layers get how many; TOML gives its name"
    )
    axis: Annotated[Literal[0, 1], BeforeValidator(no_flag)] = Field(
        1, description="1 groups along the inputs, 0 along the outputs"
    )
    head: Bits | None = Field(None, description="bits of the output head; default: left alone")
    solver: bool = Field(True, description="false: round to nearest, without optimization")

    crossed: ClassVar[tuple[str, ...]] = ("bits", "group_size", "axis", "plan")
    planned_by: ClassVar[tuple[str, ...]] = ("plan",)

    @model_validator(mode="after")
    def _bits_or_a_plan(self) -> HqqRecipe:
        if self.plan is None:
            for key in ("bits", "group_size"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key}: this key is missing; `plan` would stand for it")
            return self
        for key in ("bits", "group_size", "axis", "head", *SelectiveRecipe.model_fields):
            given = getattr(self, key)
            if key not in Recipe.model_fields.keys() - {"bits", "group_size"} and (
                given != type(self).model_fields[key].get_default()
            ):
                raise ValueError(f"{key}: leave it out, the plan says which layers get what")
        _check_plan(self.plan)
        return self

    def calibration_texts(self) -> Iterator[Dataset]:
        yield from super().calibration_texts()
        if self.plan and self.plan.searched_on:
            yield self.plan.searched_on

    @field_validator("kernel")
    @classmethod
    def _kernel_exists(cls, name: str) -> str:
        return kernels.named(name, kernels.NAMES)

    def mixed(self) -> bool:
        return super().mixed() or self.head not in (None, self.bits)

    def marks(self) -> Iterator[str]:
        if self.plan:
            yield f"plan-{self.plan.name}"
        if self.axis == 0:
            yield "axis0"
        yield from self.selection()
        if self.head:
            yield f"head{self.head}"
        if not self.solver:
            yield "rtn"
        yield from Recipe.marks(self)


def _check_plan(plan: Plan) -> None:
    """Plans are of no method; which bits and groups there are, a method knows."""
    rules = [(f"rule {n}", rule) for n, rule in enumerate(plan.rules, 1)]
    entries: list[tuple[str, Plan | Rule]] = [("", plan)]
    entries += [(f"{where}: ", rule) for where, rule in rules]
    numbers = [(f"{where}bits", entry.bits) for where, entry in entries]
    for key, bits in [*numbers, ("head", plan.head)]:
        if bits is not None and bits not in BITS:
            there = ", ".join(map(str, BITS))
            raise ValueError(f"{plan.place}: {key}: hqq has no {bits} bits; there is {there}")
    for where, entry in entries:
        if entry.group_size is not None and entry.group_size % GROUPS_OF:
            raise ValueError(
                f"{plan.place}: {where}group_size: {entry.group_size} is no multiple of {GROUPS_OF}"
            )
