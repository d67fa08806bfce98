"""Which layers a recipe quantizes: the same keys for every method that replaces layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from bitgate.catalog import Name, Recipe
from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.shapes import ConvolutionShape, LinearShape, ModelShapes

Layer = TypeVar("Layer", LinearShape, LinearShape | ConvolutionShape)


def no_flag(value: Any) -> Any:
    """Before a number is validated: TOML's true equals 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


class SelectiveRecipe(Recipe):
    """A recipe for some of a model's linear layers; by default for all but the output head."""

    layers: tuple[str, ...] = Field(
        ("*",), strict=False, description="globs on the names of linear layers"
    )
    label: Name | None = Field(None, description="stands for `layers` in the recipe's name")
    first_blocks: Annotated[int, Field(gt=0)] | None = Field(
        None, description="only the layers of so many blocks, from the first one"
    )
    first_linears: Annotated[int, Field(gt=0)] | None = Field(
        None, description="only so many linear layers, from the first one"
    )

    @model_validator(mode="after")
    def _selection_has_a_name(self) -> SelectiveRecipe:
        if self.layers != ("*",) and not self.label:
            raise ValueError("`layers` needs a `label`, which tells this recipe apart in ids")
        return self

    def marks(self) -> Iterator[str]:
        yield from self.selection()
        yield from super().marks()

    def selection(self) -> Iterator[str]:
        """What the name says of the layers chosen."""
        if self.label:
            yield self.label
        if self.first_blocks:
            yield f"first{self.first_blocks}blocks"
        if self.first_linears:
            yield f"first{self.first_linears}linears"

    def selected(self, shapes: ModelShapes) -> tuple[LinearShape, ...]:
        """The linear layers of a model that are quantized, in its order.

        Raises:
            QuantizeError: if there are none, or a glob matches none.
        """
        return self._from_the_first(shapes, shapes.select(self.layers))

    def selected_with_convolutions(
        self, shapes: ModelShapes
    ) -> tuple[LinearShape | ConvolutionShape, ...]:
        """The same for methods that quantize convolutions too, which then count as layers."""
        return self._from_the_first(shapes, shapes.select_with_convolutions(self.layers))

    def _from_the_first(self, shapes: ModelShapes, found: tuple[Layer, ...]) -> tuple[Layer, ...]:
        refuse_globs_for_nothing(self.layers, found, shapes, f"recipe {self.name}")
        if self.first_blocks:
            blocks = list(dict.fromkeys(filter(None, (block_of(layer.name) for layer in found))))
            chosen = set(blocks[: self.first_blocks])
            found = tuple(layer for layer in found if block_of(layer.name) in chosen)
        if self.first_linears:
            found = found[: self.first_linears]
        if not found:
            raise QuantizeError(
                f"recipe {self.name}: first_blocks: no linear layer chosen is in a repeated block"
            )
        return found


def refuse_globs_for_nothing(
    globs: Iterable[str],
    found: Iterable[LinearShape | ConvolutionShape],
    shapes: ModelShapes,
    where: str,
) -> None:
    """Each of the globs has to match one of the layers that all of them found: a name that was
    mistyped must not leave layers as they are.

    Raises:
        QuantizeError: if one does not; it begins with `where`, and says what there is.
    """
    names = [layer.name for layer in found]
    there = [linear.name for linear in shapes.linears if linear.name != shapes.head]
    if not names and not there:
        raise QuantizeError(
            f"{where}: layers: the model has no linear layer but its head: convolutions, "
            "transformers' Conv1D and fused experts are none"
        )
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            more = ", ..." if there[3:] else ""
            raise QuantizeError(
                f"{where}: layers: no linear layer matches {glob!r}; there is "
                f"{', '.join(there[:3])}{more}"
            )


def block_of(name: str) -> str | None:
    """The repeated block that a layer is in, `model.layers.3` of `model.layers.3.mlp.up_proj`; None
    if it is in none."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found and found[1]
