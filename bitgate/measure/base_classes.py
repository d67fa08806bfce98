"""What the base says of labelled items, computed once and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.kernels.served import TorchServed
from bitgate.sources import once, track

if TYPE_CHECKING:
    from torch import Tensor

    from bitgate.sources import EncodedItems

AREA = "base-classes"
FILE = "logits.safetensors"
#: items of a folder of the cache: what is not evaluated costs no base either
BLOCK = 128
BATCH = 32  #: which does not change an answer: tests/unit/test_batch_size.py


def base_logits(
    base: TorchServed, identity: dict[str, str], items: EncodedItems, start: int, stop: int
) -> Tensor:
    """Logits float32 [stop - start, classes] of some of the items, 0 <= start < stop <= all of
    them; `identity` says what the base is and how it is executed."""
    import torch

    first, last = start // BLOCK, (stop - 1) // BLOCK
    blocks = [_block(base, identity, items, number) for number in range(first, last + 1)]
    return torch.cat(blocks)[start - first * BLOCK : stop - first * BLOCK]


def _block(base: TorchServed, identity: dict[str, str], items: EncodedItems, number: int) -> Tensor:
    import torch
    from safetensors.torch import load_file, save_file

    begin = number * BLOCK
    end = min(begin + BLOCK, len(items))

    def build(folder: Path) -> None:
        found = []
        with track("classifying with the base", end - begin, "items") as task:
            for start in range(begin, end, BATCH):
                stop = min(start + BATCH, end)
                found.append(base.classify(items.inputs(start, stop)).float().cpu())
                task.update(stop - begin)
        save_file({"logits": torch.cat(found)}, folder / FILE)

    key = [f"{k}={v}" for k, v in sorted(identity.items())]
    folder = once(AREA, *key, items.fingerprint, number, build=build, label="base's answers")
    return load_file(folder / FILE)["logits"]
