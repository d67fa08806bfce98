"""What a cell will take, on disk and in memory, and whether it fits: before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bitgate.catalog import Plan, Recipe
from bitgate.kernels import NotHereError
from bitgate.quantize import Size, method
from bitgate.quantize.file_sizes import FLOATS, TYPES
from bitgate.quantize.key_values import cache_bytes
from bitgate.quantize.shapes import ModelShapes
from bitgate.sources.memory import HEADROOM

GIB = 2**30
#: bytes of a number in the key-value cache, where that is none of the model's dtype
CACHED = {"llama.cpp": 2}


@dataclass(frozen=True)
class Need:
    """Bytes that have to be in memory at the same time, by what they are."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """With headroom."""
        return int(sum(self.parts.values()) * HEADROOM)

    def fits(self, available: int) -> bool:
        return self.total <= available

    def __str__(self) -> str:
        """`(base 12.55 + quantized 3.66) GiB x 1.15 = 18.64 GiB`."""
        listed = " + ".join(f"{name} {size / GIB:.2f}" for name, size in self.parts.items())
        return f"({listed}) GiB x {HEADROOM:g} headroom = {self.total / GIB:.2f} GiB"


@dataclass(frozen=True)
class Footprint:
    """Of a model under a recipe, on a kind of device and in the dtype of what is not quantized."""

    recipe: Recipe
    kernel: str
    size: Size
    base: int  #: bytes of the model as it is
    parameters: int  #: their elements, tied ones once
    cache: int | None  #: bytes of the key-value cache; None where it is not known

    @property
    def exact(self) -> bool:
        """Whether the size on disk counts all of the file, not only its tensors."""
        return self.size.header > 0

    @property
    def rule_of_thumb(self) -> int | None:
        """Parameters times the bytes of so many bits; None where bits are of several kinds."""
        bits = nominal_bits(self.recipe)
        return None if bits is None else self.parameters * bits // 8

    @property
    def serving(self) -> Need:
        """To answer."""
        return need(quantized=self.size.memory, cache=self.cache)

    @property
    def measuring(self) -> Need:
        """To be measured beside its base."""
        return need(self.base, self.size.memory, self.cache)


def need(base: int = 0, quantized: int = 0, cache: int | None = None) -> Need:
    """What has to be in memory together; nothing is listed that takes nothing."""
    parts = {"base": base, "quantized": quantized, "key-value cache": cache or 0}
    return Need({name: size for name, size in parts.items() if size})


def element_bytes(dtype: str) -> int:
    """Of a number, by torch's name of its type."""
    return TYPES[FLOATS[dtype]]


def base_bytes(shapes: ModelShapes, dtype: str) -> int:
    """Of the model as it is, in memory."""
    return shapes.left(()) * element_bytes(dtype) + shapes.fixed + shapes.transient


def footprint(
    shapes: ModelShapes, recipe: Recipe, device: str, dtype: str, context: int, batch: int
) -> Footprint | None:
    """What a cell takes on a device in a dtype, such as `bfloat16`, with a key-value cache of
    `batch` times `context` tokens; None where the recipe's size does not follow from shapes.

    Raises:
        QuantizeError, KernelError: if the recipe cannot be made of the model, or served.
    """
    kernel, element = served_by(shapes, recipe, device), element_bytes(dtype)
    size = method(recipe.method).predicted_bytes(shapes.in_dtype(dtype), recipe, kernel, element)
    if size is None:
        return None
    kept = CACHED.get(kernel, element)
    return Footprint(
        recipe,
        kernel,
        size,
        base_bytes(shapes, dtype),
        shapes.parameters,
        None if shapes.cache is None else cache_bytes(shapes.cache, context, batch, kept),
    )


def served_by(shapes: ModelShapes, recipe: Recipe, device: str) -> str:
    """The kernel of a recipe; where that runs on another device only, it is told what it would be
    there, as the file is the same."""
    how = method(recipe.method)
    try:
        return how.kernel(shapes, recipe, device)
    except NotHereError:
        if recipe.kernel in how.OWN_KERNELS or recipe.kernel == "auto":
            return how.OWN_KERNELS[0]
        return recipe.kernel


def nominal_bits(recipe: Recipe) -> int | None:
    """What is said of a recipe when it is called one of so many bits."""
    if recipe.bits is not None:
        return recipe.bits
    plans = (getattr(recipe, key) for key in type(recipe).planned_by)
    plan = next((plan for plan in plans if isinstance(plan, Plan)), None)
    if plan is not None:
        several = {plan.bits, *(rule.bits for rule in plan.rules if rule.bits is not None)}
        return plan.bits if len(several) == 1 else None
    said = re.match(r"[a-z]+(\d+)", str(getattr(recipe, "type", "")))  # q4_k_m, f16
    return int(said[1]) if said else None


# --- names -----------------------------------------------------------------------------------


def meant(asked: str, known: Iterable[str]) -> list[str]:
    """The names that somebody may have meant: the one that is called so; or those that are, without
    their method; or have these words in them; or these letters."""
    names = list(known)
    ways = (
        lambda name: name == asked,
        lambda name: name.partition("-")[2] == asked,
        lambda name: f"-{asked}-" in f"-{name}-",
        lambda name: asked in name,
    )
    return next((found for way in ways if (found := [n for n in names if way(n)])), [])
