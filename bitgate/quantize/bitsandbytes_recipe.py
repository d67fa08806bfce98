"""What a recipe of method `bitsandbytes` may say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bitgate.catalog import nearest
from bitgate.quantize.selection import SelectiveRecipe

BLOCK = 64  #: weights that share a maximum, in 4 bits
#: 4 bits are dequantized for each product; int8 multiplies integers
KERNEL = "bitsandbytes"
#: what the library does instead on a CPU with AVX512-BF16: it packs the weight anew when it is
#: first used, with maxima rounded to bfloat16, and computes in bfloat16 without dequantizing it
PACKED = "bitsandbytes-avx512bf16"


class BitsAndBytesRecipe(SelectiveRecipe):
    """Keys of a `[[recipe]]` with `method = "bitsandbytes"`; its `bits` follow from `type`."""

    method: Literal["bitsandbytes"] = "bitsandbytes"
    type: Literal["int8", "nf4", "fp4"]
    double: bool = Field(False, description="quantize the maxima of 4-bit blocks too")
    threshold: Annotated[float, Field(ge=0)] = Field(
        6.0, description="int8: inputs beyond it stay in floating point; 0: none do"
    )

    crossed: ClassVar[tuple[str, ...]] = ("type", "double")

    @model_validator(mode="before")
    @classmethod
    def _bits_follow(cls, data: Any) -> Any:
        """For gates and tables, which ask every recipe."""
        implied = {"int8": (8, None), "nf4": (4, BLOCK), "fp4": (4, BLOCK)}
        kind = data.get("type") if isinstance(data, dict) else None
        if kind not in implied:  # the error is the type's
            return data
        fixed = dict(zip(("bits", "group_size"), implied[kind], strict=True))
        for key, value in fixed.items():
            if data.get(key, value) != value:
                raise ValueError(f"{key}: type {kind!r} has {value}; leave the key out")
        return {**data, **fixed}

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> BitsAndBytesRecipe:
        if self.type == "int8" and self.double:
            raise ValueError("double: for nf4 and fp4 only; int8 has one maximum a row")
        if self.type != "int8" and "threshold" in self.model_fields_set:
            raise ValueError("threshold: for int8 only; 4-bit layers compute in floating point")
        known = ("auto", KERNEL, *(() if self.type == "int8" else (PACKED,)))
        if self.kernel not in known:
            raise ValueError(
                f"kernel: {self.kernel!r} does not serve {self.type}; {nearest(self.kernel, known)}"
            )
        return self

    def marks(self) -> Iterator[str]:
        if self.double:
            yield "double"
        if self.type == "int8" and self.threshold != 6.0:
            yield f"t{self.threshold:g}"
        yield from super().marks()

    @property
    def name(self) -> str:
        """`bitsandbytes-nf4-double`."""
        return "-".join((self.method, self.type, *self.marks()))
