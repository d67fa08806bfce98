"""Plans: which layers of a model get how many bits, as an ordered list of rules in `plans.toml`.

[plan.attention-finer]
bits = 4                                          # of every layer that no rule is for
group_size = 64
rules = [
    { part = "attention", bits = 8 },
    { blocks = [0, "last quarter"], layers = "*.down_proj", bits = 8 },
    { blocks = -1, keep = true },                 # not quantized
]
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bitgate.catalog.entries import Dataset, Entry, Name

#: positions among a model's blocks that have a name, as parts of the whole: first, last, of
NAMED = {"first quarter": (1, 1, 4), "middle": (2, 3, 4), "last quarter": (4, 4, 4)}
ENDS = {"first": 0, "last": -1}


def _one_or_more(value: Any) -> Any:
    """TOML may leave the brackets out; an empty list would be a rule for nothing."""
    if value == [] or value == ():
        raise ValueError("an empty list matches nothing")
    return (value,) if isinstance(value, str | int) else value


class Rule(Entry):
    """Which layers, by all of `layers`, `part` and `blocks` that are given, and what they get."""

    layers: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] | None = Field(
        None, strict=False, description="globs on the names of linear layers"
    )
    part: Literal["attention", "mlp"] | None = Field(
        None, description="the layers of a block's attention, or all its others"
    )
    blocks: Annotated[tuple[int | str, ...], BeforeValidator(_one_or_more)] | None = Field(
        None,
        strict=False,
        description="numbers, from the end if negative; first, last, first quarter, middle, last "
        "quarter; or 3/8, the third of eight parts",
    )
    bits: int | None = None
    group_size: Annotated[int, Field(gt=0)] | None = None
    keep: bool = Field(False, description="left unquantized")

    @field_validator("blocks")
    @classmethod
    def _positions_exist(cls, blocks: tuple[int | str, ...] | None) -> Any:
        for position in blocks or ():
            if isinstance(position, str) and position not in ENDS:
                part_of(position)
        return blocks

    @model_validator(mode="after")
    def _does_something(self) -> Rule:
        if self.keep and (self.bits or self.group_size):
            raise ValueError("keep: what is left unquantized has no bits or group_size")
        if not (self.keep or self.bits or self.group_size):
            raise ValueError("the rule does nothing: give bits, group_size or keep = true")
        if self.layers is None and self.part is None and self.blocks is None:
            raise ValueError("the rule names no layers: give layers, part or blocks")
        return self


class Plan(Entry):
    """An entry of `plans.toml`. Of the rules that match a layer the last one holds, key by key."""

    name: Name
    bits: int = Field(description="of every layer that no rule is for")
    group_size: Annotated[int, Field(gt=0)]
    head: int | None = Field(None, description="bits of the output head; default: left alone")
    rules: tuple[Rule, ...] = Field((), strict=False)
    searched_on: Dataset | None = Field(
        None, description="the text that chose the rules; TOML gives its name"
    )
    where: str = Field("", exclude=True, repr=False, description="file and table, for messages")

    @property
    def place(self) -> str:
        """How messages call it."""
        return self.where or f"plan {self.name}"


def part_of(position: str) -> tuple[int, int, int]:
    """(first, last, of): a position as some of equal parts of the blocks, counted from 1.

    Raises:
        ValueError: if there is no such position.
    """
    if position in NAMED:
        return NAMED[position]
    if found := re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", position):
        which, of = int(found[1]), int(found[2])
        if which <= of:
            return which, which, of
    known = ", ".join((*ENDS, *NAMED))
    raise ValueError(f"no position is called {position!r}; there is {known}, and 3/8")
