"""gptqmodel's layers as the library makes them, which is kept from leaving traces elsewhere."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Grouping
from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.gptq_recipe import GptqRecipe
from bitgate.quantize.selection import block_of
from bitgate.quantize.shapes import shapes_of
from bitgate.sources import track
from bitgate.sources.quiet import untouched

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitgate.sources.progress import Task

LEAST_WORKERS = 2  #: threads of the library's pool


def solved(
    module: nn.Module, recipe: GptqRecipe, layers: Mapping[str, Grouping], text: Tensor
) -> Any:
    """`module`, in which the library has put packed layers; `text` are calibration windows, one a
    row, on the CPU as the module is.

    Raises:
        QuantizeError: if the library does not know models of this kind.
    """
    left_alone = [x.name for x in shapes_of(module).linears if x.name not in layers]
    with library() as gptqmodel:
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
def library() -> Iterator[Any]:
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
