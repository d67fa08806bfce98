"""What a recipe of method `gptq` may say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from bitgate import kernels
from bitgate.catalog import Dataset
from bitgate.quantize.selection import SelectiveRecipe, no_flag

KERNEL = "gptqmodel"  #: the library's own
SHORTEST = 10  #: tokens of a calibration window; the library drops what has fewer
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)


class GptqRecipe(SelectiveRecipe):
    """Keys of a `[[recipe]]` with `method = "gptq"`."""

    method: Literal["gptq"] = "gptq"
    bits: Annotated[Literal[8, 4, 3, 2], BeforeValidator(no_flag)]
    group_size: Annotated[int, BeforeValidator(no_flag)]
    symmetric: bool = Field(True, description="false: each group has a zero of its own")
    calibration: Dataset = Field(description="the name of the dataset to calibrate with")

    calibrated_by: ClassVar[tuple[str, ...]] = ("calibration",)
    default_text: ClassVar[str | None] = "enwiki-calibration"

    @field_validator("group_size")
    @classmethod
    def _group_size_exists(cls, size: int) -> int:
        if size not in GROUP_SIZES:
            raise ValueError(f"gptqmodel has groups of {', '.join(map(str, GROUP_SIZES))}")
        return size

    @field_validator("calibration")
    @classmethod
    def _windows_are_used(cls, text: Dataset) -> Dataset:
        if text.window < SHORTEST:
            raise ValueError(
                f"{text.name} has windows of {text.window} tokens, and gptqmodel drops those of "
                f"less than {SHORTEST}: raise `window`"
            )
        return text

    @field_validator("kernel")
    @classmethod
    def _kernel_exists(cls, name: str) -> str:
        return kernels.named(name, (KERNEL, *kernels.KERNELS))

    def marks(self) -> Iterator[str]:
        if not self.symmetric:
            yield "asym"
        if self.calibration.name != self.default_text:
            yield self.calibration.name
        yield from super().marks()
