"""What a model is given, batch by batch, where only the cost of it matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bitgate.catalog import EnergyWorkload, MemoryWorkload
from bitgate.kernels.served import Served, TorchServed
from bitgate.sources.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

    from bitgate.sources import EncodedItems, Windows

#: what a model is called with, by name: `tokens` int64 [batch, length] of a language model, or what
#: `EncodedItems.inputs` gives
Inputs = Mapping[str, "Tensor"]
TOKENS = "tokens"


def of_text(workload: MemoryWorkload | EnergyWorkload, text: Windows) -> list[Inputs]:
    """The beginnings of windows.

    Raises:
        SourceError: if the text has too few.
    """
    _refuse_too_few(workload, len(text), "windows", "lower its `stride`, or raise its `tokens`")
    tokens = text.tokens[: workload.count, : workload.length]
    return [{TOKENS: tokens[start:stop].contiguous()} for start, stop in _spans(workload)]


def of_items(workload: MemoryWorkload | EnergyWorkload, items: EncodedItems) -> list[Inputs]:
    """Items with classes, as the model takes them.

    Raises:
        SourceError: if there are too few.
    """
    _refuse_too_few(workload, len(items), "items", "raise its `items`")
    return [items.inputs(start, stop) for start, stop in _spans(workload)]


def answer(served: Served, inputs: Inputs) -> Tensor:
    """Logits: of every token that follows, or of every class."""
    if TOKENS in inputs:
        return served.logits(inputs[TOKENS])
    assert isinstance(served, TorchServed)
    return served.classify(inputs)


def tokens_in(batches: Sequence[Inputs]) -> int | None:
    """How many tokens are read; None where no tokens are."""
    if not all(TOKENS in inputs for inputs in batches):
        return None
    return sum(int(inputs[TOKENS].numel()) for inputs in batches)


def _spans(workload: MemoryWorkload | EnergyWorkload) -> Iterator[tuple[int, int]]:
    for start in range(0, workload.count, workload.batch):
        yield start, start + workload.batch


def _refuse_too_few(
    workload: MemoryWorkload | EnergyWorkload, found: int, what: str, remedy: str
) -> None:
    if found < workload.count:
        raise SourceError(
            f"{workload.kind} {workload.name}: {workload.inputs.name} has {found} {what} of the "
            f"{workload.count} that it takes: {remedy}"
        )
