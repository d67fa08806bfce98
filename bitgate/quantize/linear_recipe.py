"""What a recipe of method `linear` may say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bitgate import kernels
from bitgate.catalog import Dataset, Recipe
from bitgate.quantize.selection import SelectiveRecipe

Bits = Annotated[int, Field(ge=2, le=8)]

#: the kernel of layers that are integers from input to output
INTEGER = "integer"


TEXT = "enwiki-calibration"  #: the dataset that names do not mention


class LinearRecipe(SelectiveRecipe):
    """Keys of a `[[recipe]]` with `method = "linear"`."""

    method: Literal["linear"] = "linear"
    bits: Bits
    granularity: Literal["tensor", "channel"] | None = Field(
        None, description="one scale for a whole weight, or one per output"
    )
    group_size: Annotated[int, Field(gt=1)] | None = Field(
        None, description="one scale per so many inputs of an output, instead of `granularity`"
    )
    symmetric: bool = Field(False, description="the grid is as wide below 0 as above")
    head: Bits | None = Field(None, description="bits of the output head; default: left alone")
    activation_bits: Bits | None = Field(
        None, description="of inputs and outputs: integers throughout; default: weights only"
    )
    calibration: Dataset | None = Field(None, description="the text that activations are seen on")
    percentile: Annotated[float, Field(gt=50, le=100, strict=False)] = Field(
        100, description="how much of the activations the grid spans; 100: minimum to maximum"
    )

    crossed: ClassVar[tuple[str, ...]] = (
        "bits",
        "group_size",
        "granularity",
        "symmetric",
        "percentile",
    )
    calibrated_by: ClassVar[tuple[str, ...]] = ("calibration",)

    @field_validator("kernel")
    @classmethod
    def _kernel_exists(cls, name: str) -> str:
        return kernels.named(name, (*kernels.NAMES, INTEGER))

    @model_validator(mode="after")
    def _keys_go_together(self) -> LinearRecipe:
        if (self.granularity is None) == (self.group_size is None):
            raise ValueError("give either `granularity`, tensor or channel, or `group_size`")
        if self.activation_bits is None:
            for key in ("calibration", "percentile"):
                if key in self.model_fields_set:
                    raise ValueError(f"`{key}` is for activations: give `activation_bits` too")
            if self.kernel == INTEGER:
                raise ValueError(f"kernel {INTEGER} needs `activation_bits`")
            return self
        if self.calibration is None:
            raise ValueError("`activation_bits` needs `calibration`, the name of a dataset")
        if self.group_size is not None:
            raise ValueError(
                "`activation_bits` does not go with `group_size`: integers can be summed over all "
                "inputs only if these share one scale; give `granularity`"
            )
        if self.head is not None:
            raise ValueError("`head` does not go with `activation_bits`: logits are not quantized")
        if self.kernel not in ("auto", INTEGER):
            raise ValueError(f"with `activation_bits` the kernel is {INTEGER}")
        return self

    def mixed(self) -> bool:
        return super().mixed() or self.head not in (None, self.bits)

    def marks(self) -> Iterator[str]:
        if self.granularity:
            yield self.granularity
        if self.symmetric:
            yield "symmetric"
        if self.percentile < 100:
            yield f"p{self.percentile:g}"
        if self.calibration is not None and self.calibration.name != TEXT:
            yield self.calibration.name
        yield from self.selection()
        if self.head:
            yield f"head{self.head}"
        yield from Recipe.marks(self)

    @property
    def width(self) -> str:
        return f"{super().width}a{self.activation_bits}" if self.activation_bits else super().width
