"""Sizes as tables elsewhere count them, which is never how a file does: by the methods' own packing
rules, with what each table counts twice, leaves out or adds.

A figure that is reproduced to its last digit says two things: that the packing rules are right, and
what the figure means. docs/predict.md has the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from bitgate.catalog import Recipe
from bitgate.quantize import QuantizeError, method
from bitgate.quantize.bitsandbytes_sizes import statistics_bytes
from bitgate.quantize.hqq_sizes import groupings
from bitgate.quantize.shapes import ModelShapes

#: bytes of a unit
UNITS = {"MB": 10**6, "MiB": 2**20, "GiB": 2**30}

#: what hqq keeps of a layer beside codes, scale and zero when all of it is made tensors: bits, size
#: of a group and axis as int32, the shape as two int64, the names of its packing and of its codes'
#: type, and three flags. (Its state has 19 more: the type that it computes in, and six flags.)
HQQ_META = 3 * 4 + 2 * 8 + len("4bit_u8") + len("torch.uint8") + 3


@dataclass(frozen=True)
class Counting:
    """What a table counts."""

    unit: Literal["MB", "MiB", "GiB"]
    element: int  #: bytes of a number that is not quantized, and of a scale or zero of hqq
    #: a head that is one tensor with the embedding counts, as if it were another
    tied_twice: bool = False
    #: only parameters of modules without modules inside: no position embedding, no class token
    leaves_only: bool = False
    statistics: bool = True  #: of bitsandbytes: maxima, and what codes stand for
    meta: int = 0  #: bytes for each layer beside codes, scale and zero

    def size(self, shapes: ModelShapes, recipe: Recipe | None) -> float:
        """In `unit`; without a recipe, that of the model as it is.

        Raises:
            QuantizeError: if the recipe cannot be made of the model, or the shapes do not say what
                is to be counted.
        """
        return self.bytes(shapes, recipe) / UNITS[self.unit]

    def bytes(self, shapes: ModelShapes, recipe: Recipe | None) -> int:
        """The same in bytes."""
        if recipe is None:
            total = shapes.left(()) * self.element
        else:
            how = method(recipe.method)
            kernel = how.OWN_KERNELS[-1]  # which makes no difference to what is saved
            found = how.predicted_bytes(shapes, recipe, kernel, self.element)
            if found is None:
                raise QuantizeError(f"recipe {recipe.name}: its size does not follow from shapes")
            total = found.tensors + self._beside(shapes, recipe)
        if self.tied_twice and shapes.tied:
            head = next(linear for linear in shapes.linears if linear.name == shapes.head)
            total += head.out_features * head.in_features * self.element
        if self.leaves_only:
            total -= self.element * sum(_outside_of_leaves(shapes))
        return total

    def _beside(self, shapes: ModelShapes, recipe: Any) -> int:
        if self.meta:
            return self.meta * len(groupings(shapes, recipe))
        if not self.statistics:
            layers = recipe.selected(shapes)
            return -sum(statistics_bytes(layer, recipe) for layer in layers)
        return 0


def _outside_of_leaves(shapes: ModelShapes) -> Iterable[int]:
    """Elements of each tensor of a module that has modules inside."""
    if shapes.file is None:
        raise QuantizeError("the shapes do not name the tensors; run `bitgate lock`")
    owners = {tensor.name.rpartition(".")[0] for tensor in shapes.file.tensors}
    owners |= {linear.name for linear in shapes.linears}
    parents = {owner[:at] for owner in owners for at, c in enumerate(owner) if c == "."} | {""}
    for tensor in shapes.file.tensors:
        if tensor.name.rpartition(".")[0] in parents:
            yield prod(tensor.shape)


#: Llama-3.2-1B-Instruct under hqq, group 64, base in 16 bits. Any 44 to 52 bytes of `meta` give the
#: digits that were printed.
LLAMA_1B = Counting("MiB", 2, tied_twice=True, meta=HQQ_META)
#: DeiT III small with 100 classes under hqq, base in 32 bits. The group is 32: the 64 beside the
#: printed table gives none of its figures.
DEIT_S = Counting("MiB", 4, leaves_only=True)
#: LLaMA-2-7B with a head of three classes under hqq, group 64, base in 32 bits; printed as GB
LLAMA_7B = Counting("GiB", 4)
#: OPT-350m with int8 weights made by hand: a scale in 32 bits for each output
OPT_BY_HAND = Counting("MB", 4)
#: OPT-350m under bitsandbytes: `get_memory_footprint()` of transformers, base in 16 bits
OPT_BITSANDBYTES = Counting("MB", 2, statistics=False)
