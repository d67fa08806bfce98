"""GPTQ through the gptqmodel library: each layer's weights are rounded one input after another, and
those not rounded yet make up for the error, as seen on calibration text.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022); packing rules: gptqmodel/nn_modules/qlinear of gptqmodel 7.7.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from bitgate import kernels
from bitgate.catalog import Dataset, nearest
from bitgate.kernels.affine import Affine, Grouping
from bitgate.quantize import Extra, QuantizeError, Size
from bitgate.quantize.calibration import calibration_windows
from bitgate.quantize.file_sizes import Stored
from bitgate.quantize.replaced import ReplacedModel, put, read, replace
from bitgate.quantize.replaced_sizes import StoredLayer, predicted_size
from bitgate.quantize.selection import SelectiveRecipe, block_of, no_flag
from bitgate.quantize.shapes import LinearShape, ModelShapes, shapes_of
from bitgate.sources import track
from bitgate.sources.quiet import untouched

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitgate.sources import LoadedModel
    from bitgate.sources.progress import Task

KERNEL = "gptqmodel"
OWN_KERNELS = (KERNEL,)
EXTRA = Extra("gptq", ("gptqmodel",))
WORD = 32  #: bits of an integer that codes are packed into
LEAST_WORKERS = 2  #: threads of the library's pool
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
        known = ("auto", KERNEL, *kernels.KERNELS)
        if name not in known:
            raise ValueError(f"no kernel is called {name!r}; {nearest(name, known)}")
        return name

    def marks(self) -> Iterator[str]:
        if not self.symmetric:
            yield "asym"
        if self.calibration.name != self.default_text:
            yield self.calibration.name
        yield from super().marks()


RECIPE = GptqRecipe


# --- sizes ---------------------------------------------------------------------------------


def groupings(shapes: ModelShapes, recipe: GptqRecipe) -> dict[str, Grouping]:
    """How every layer that the recipe quantizes is cut into groups, by name; the last group of a
    row is smaller where the group size does not divide the inputs."""
    out = {}
    for linear in recipe.selected(shapes):
        grouping = Grouping(
            linear.out_features, linear.in_features, recipe.bits, recipe.group_size, axis=1
        )
        if reason := unpackable(grouping):
            raise QuantizeError(
                f"recipe {recipe.name}: {linear.name}: {grouping}: {reason}; "
                "give `layers` without this one"
            )
        if block_of(linear.name) is None:
            raise QuantizeError(
                f"recipe {recipe.name}: {linear.name}: gptqmodel quantizes layers of repeated "
                "blocks only; give `layers` without this one"
            )
        out[linear.name] = grouping
    return out


def unpackable(grouping: Grouping) -> str | None:
    """Why gptqmodel cannot pack a layer grouped like this; None if it can."""
    for what, count in (("inputs", grouping.in_features), ("outputs", grouping.out_features)):
        if count % WORD:
            return f"the number of {what} must be a multiple of {WORD}"
    return None


def layer_bytes(grouping: Grouping, bias: bool) -> int:
    """Of a layer in a file: codes, a zero of as many bits and a float16 scale for every group, the
    group of every input as int32, and a float16 bias."""
    rows, columns, groups = grouping.out_features, grouping.in_features, _groups(grouping)
    codes = (columns + groups) * rows * grouping.bits // 8
    return codes + 2 * groups * rows + 4 * columns + (2 * rows if bias else 0)


def working_bytes(grouping: Grouping) -> int:
    """What such a layer keeps beside them in memory to unpack itself: shifts, and (but for 3 bits)
    unpacked zeros of one byte, of two at 8 bits, and the group of every input as int64."""
    if grouping.bits == 3:
        return 4 * 3 * 12
    shifts = 4 * WORD // grouping.bits
    zeros = _groups(grouping) * grouping.out_features * (2 if grouping.bits == 8 else 1)
    return shifts + zeros + 8 * grouping.in_features


def _groups(grouping: Grouping) -> int:
    return math.ceil(grouping.in_features / grouping.group_size)


def kernel(shapes: ModelShapes, recipe: GptqRecipe, device: str) -> str:
    """The kernel that serves every quantized layer on `device`; else the library's own."""
    layers = groupings(shapes, recipe)
    if recipe.kernel == KERNEL:
        return KERNEL
    chosen = kernels.choose(recipe.kernel, device, layers)
    return KERNEL if chosen == kernels.REFERENCE else chosen


def predicted_bytes(shapes: ModelShapes, recipe: GptqRecipe, kernel: str, element: int) -> Size:
    """The size from shapes alone; the head is left as it is."""
    quantized = groupings(shapes, recipe)
    rest = shapes.others
    tensors = memory = 0
    layers = {}
    for linear in shapes.linears:
        grouping = quantized.get(linear.name)
        if grouping is not None:
            layers[linear.name] = stored(grouping, linear.bias)
            tensors += layer_bytes(grouping, linear.bias)
            memory += _served_bytes(grouping, linear, kernel)
        elif not (linear.name == shapes.head and shapes.tied):
            rest += linear.out_features * linear.in_features
            rest += linear.out_features if linear.bias else 0
    return predicted_size(
        shapes,
        recipe,
        LAYERS.format,
        layers,
        element,
        tensors=tensors + rest * element + shapes.fixed,
        memory=memory + rest * element + shapes.fixed + shapes.transient,
    )


def stored(grouping: Grouping, bias: bool) -> StoredLayer:
    """What is written of a layer, which `layer_bytes` counts."""
    rows, columns, groups = grouping.out_features, grouping.in_features, _groups(grouping)
    return StoredLayer(
        parts={
            "qweight": Stored("I32", (columns * grouping.bits // WORD, rows)),
            "qzeros": Stored("I32", (groups, rows * grouping.bits // WORD)),
            "scales": Stored("F16", (groups, rows)),
            "g_idx": Stored("I32", (columns,)),
        },
        meta={},
        bias="F16" if bias else None,
    )


def _served_bytes(grouping: Grouping, linear: LinearShape, kernel: str) -> int:
    if kernel == KERNEL:
        return layer_bytes(grouping, linear.bias) + working_bytes(grouping)
    bias = 2 * linear.out_features if linear.bias else 0
    return kernels.kernel(kernel).packed_bytes(grouping) + bias


# --- quantizing ----------------------------------------------------------------------------


def quantize(model: LoadedModel, recipe: GptqRecipe, dtype: torch.dtype) -> ReplacedModel:
    """Quantize the layers of a model as the recipe says; everything else is shared with it."""
    layers = groupings(shapes_of(model.module), recipe)
    text = calibration_windows(model, recipe, recipe.calibration).cpu()
    device = next(model.module.parameters()).device
    solved = _solved(to_work_on(model, layers), recipe, layers, text)
    parts = {name: LAYERS.tensors(solved.get_submodule(name)) for name in layers}
    biases = {name: solved.get_submodule(name).bias for name in layers}
    del solved
    gc.collect()

    def make(layer: nn.Module, name: str) -> nn.Module:
        # plain tensors: those that were made in inference mode cannot be told apart by version
        own = {key: tensor.clone().to(device) for key, tensor in parts.pop(name).items()}
        bias = biases.pop(name)
        bias = None if bias is None else bias.clone().to(device)
        return LAYERS.rebuild(recipe, {}, own, bias, dtype)

    names = {name: name for name in layers}
    module = replace(model.module, names, make, expendable=model.expendable)
    return _warm(ReplacedModel(module, recipe, tuple(layers), LAYERS, dtype))


def to_work_on(model: LoadedModel, layers: Iterable[str]) -> nn.Module:
    """The model on the CPU and in memory of its own, for a library that changes the weights that it
    is given.

    An expendable one hands its `layers` over, of which nothing is left in it: only the rest is
    there twice, and one layer while it is handed over.
    """
    from copy import deepcopy

    from torch import nn

    if not model.expendable:
        return deepcopy(model.module).cpu()
    taken: dict[str, nn.Module] = {}

    def hand_over(layer: nn.Module, name: str) -> nn.Module:
        taken[name] = deepcopy(layer).cpu()
        return nn.Identity()

    rest = replace(model.module, {name: name for name in layers}, hand_over, expendable=True)
    copy = deepcopy(rest).cpu()
    for name, layer in taken.items():
        put(copy, name, layer)
    return copy


def _solved(
    module: nn.Module, recipe: GptqRecipe, layers: Mapping[str, Grouping], text: Tensor
) -> Any:
    """`module`, in which the library has put packed layers."""
    left_alone = [x.name for x in shapes_of(module).linears if x.name not in layers]
    with _library() as gptqmodel:
        from gptqmodel.models._const import DEVICE
        from gptqmodel.models.auto import MODEL_MAP

        kind = module.config.model_type
        if kind not in MODEL_MAP:
            raise QuantizeError(f"recipe {recipe.name}: gptqmodel does not know models of {kind}")
        config = gptqmodel.QuantizeConfig(
            bits=recipe.bits,
            group_size=recipe.group_size,
            sym=recipe.symmetric,
            format="gptq_v2",  # zeros as they are; the older format stores each less one
            desc_act=False,  # groups of neighbours, which every kernel can read
            dynamic={f"-:^{re.escape(name)}$": {} for name in left_alone} or None,
            # rounding to nearest must not pass for GPTQ where little of the text reaches a layer
            fallback=None,
            # the default builds a C++ extension at first use: two minutes for a second of work
            pack_impl="original",
            offload_to_disk=False,
            device=DEVICE.CPU,
        )
        whole = MODEL_MAP[kind](module, quantized=False, quantize_config=config)
        blocks = len(module.get_submodule(_blocks_of(layers)))
        with (
            track(f"{recipe.name}: gptqmodel solves", blocks, "blocks") as task,
            TemporaryDirectory(prefix="bitgate-gptq-") as folder,
            chdir(folder),  # in which it leaves logs
        ):
            whole.layer_callback = _Counting(task)
            whole.quantize(
                [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in text],
                batch_size=1,
            )
            gptqmodel.DEVICE_THREAD_POOL.wait()
    return whole.model


def _blocks_of(layers: Iterable[str]) -> str:
    """The list of blocks, `model.layers` of `model.layers.3.mlp.up_proj`."""
    block = block_of(next(iter(layers)))
    assert block is not None
    return block.rpartition(".")[0]


class _Counting:
    """What the library tells about its progress."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        self.task.update(max(self.task.done, layer_idx + 1))


@contextmanager
def _library() -> Iterator[Any]:
    """The library, which inside writes nothing, and leaves the environment and torch as they were.

    Its thread pool deadlocks with the single worker that it takes on two cores.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with untouched():
            os.environ["GPTQMODEL_CPU_WORKERS"] = str(max(LEAST_WORKERS, threads))
            os.environ.setdefault("PYTEST_CURRENT_TEST", "-")  # its own switch against bars
            import gptqmodel

            logging.getLogger("logbar").setLevel(logging.ERROR)
            yield gptqmodel
    finally:
        torch.set_num_threads(threads)


# --- layers and files ----------------------------------------------------------------------


class _Layers:
    """The library's layers in a file of plain tensors, packed as it packs them."""

    format = "bitgate-gptq-1"
    recipe_type = GptqRecipe

    def layer_class(self) -> type[nn.Module]:
        with _library():
            from gptqmodel.nn_modules.qlinear.torch import TorchLinear

        found: type[nn.Module] = TorchLinear
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        return {part: getattr(layer, part) for part in PARTS}

    def meta(self, layer: Any) -> dict[str, Any]:
        return {}

    def rebuild(
        self,
        recipe: GptqRecipe,
        meta: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> nn.Module:
        layer: Any = self.layer_class()(
            bits=recipe.bits,
            group_size=recipe.group_size,
            sym=recipe.symmetric,
            desc_act=False,
            in_features=len(parts["g_idx"]),
            out_features=parts["scales"].shape[1],
            register_buffers=False,
        )
        for part in PARTS:
            layer.register_buffer(part, parts[part])
        layer.register_buffer("bias", bias)
        layer.qzero_format(format=2)
        # else it would compile the unpacking of each layer at its first call
        layer.optimized = True
        layer.post_init()
        return layer.eval()

    def dequantize(self, layer: Any) -> Tensor:
        weight: Tensor = layer.dequantize_weight().T
        return weight

    def affine(self, layer: Any) -> Affine:
        """Unpacked; groups must be of neighbours and of the same size."""
        columns, rows = layer.in_features, layer.out_features
        grouping = Grouping(rows, columns, layer.bits, layer.group_size, axis=1)
        if columns % layer.group_size or not _neighbours(layer.g_idx, layer.group_size):
            raise QuantizeError(f"{grouping}: its groups are not of so many neighbours each")
        zeros = unpacked(layer.qzeros.T, layer.bits)[:rows]
        return Affine(
            grouping,
            codes=unpacked(layer.qweight, layer.bits).T.contiguous(),
            scale=layer.scales.T,
            zero=zeros.to(layer.scales.dtype),
        )


#: what the library calls the tensors of a layer
PARTS = ("qweight", "qzeros", "scales", "g_idx")
LAYERS = _Layers()


def _neighbours(group_of: Tensor, size: int) -> bool:
    import torch

    return bool(torch.equal(group_of, torch.arange(len(group_of), device=group_of.device) // size))


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes uint8 [count, columns] of int32 words [count * bits / 32, columns], in which they
    follow each other down each column without gaps, lowest bits first: `bits` words hold 32."""
    import torch

    at = torch.arange(WORD, device=words.device) * bits
    blocks = words.long().bitwise_and(2**WORD - 1).unflatten(0, (-1, bits))
    after = torch.cat([blocks[:, 1:], torch.zeros_like(blocks[:, :1])], 1)
    pairs = (blocks | after << WORD)[:, at // WORD]
    codes = pairs >> (at % WORD)[:, None] & 2**bits - 1
    return codes.flatten(0, 1).to(torch.uint8)


def _warm(model: ReplacedModel) -> ReplacedModel:
    """Let each layer unpack itself once: what it then keeps is part of what the model takes."""
    for name in model.layers:
        model.layer(name).dequantize_weight()
    return model


def load(path: Path, device: str = "cpu") -> ReplacedModel:
    """The model that `quantize` made and `save` wrote, with bit-identical tensors."""
    return _warm(read(path, device, LAYERS))
