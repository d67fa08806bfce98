"""The shapes of a model's tensors: all that a size prediction needs."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LinearShape:
    """One linear layer."""

    name: str
    out_features: int
    in_features: int
    bias: bool


@dataclass(frozen=True)
class ModelShapes:
    """Linear layers by name, the head among them, and the elements of everything else.

    `others` counts the elements of all other parameters and persistent buffers once, `transient`
    those of buffers that are not saved; `tied` says that the head's weight is also the embedding,
    which `others` then counts.
    """

    linears: tuple[LinearShape, ...]
    others: int
    transient: int
    head: str | None
    tied: bool

    def select(self, globs: tuple[str, ...]) -> tuple[LinearShape, ...]:
        """Linear layers whose name matches a glob, without the head."""
        return tuple(
            linear
            for linear in self.linears
            if linear.name != self.head and any(fnmatchcase(linear.name, glob) for glob in globs)
        )


def shapes_of(module: nn.Module) -> ModelShapes:
    """The shapes of a model, which may be on the meta device."""
    from torch import nn

    head = head_of(module)
    linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    tied = head is not None and id(linears[head].weight) in embeddings
    in_linears = {
        id(p) for n, m in linears.items() if not (tied and n == head) for p in m.parameters()
    }
    others = {id(p): p.numel() for p in module.parameters() if id(p) not in in_linears}
    transient = 0
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name in part._non_persistent_buffers_set:
                transient += buffer.numel() * buffer.element_size()
            else:
                others[id(buffer)] = buffer.numel()
    return ModelShapes(
        linears=tuple(
            LinearShape(name, m.out_features, m.in_features, m.bias is not None)
            for name, m in linears.items()
        ),
        others=sum(others.values()),
        transient=transient,
        head=head,
        tied=tied,
    )


def head_of(module: nn.Module) -> str | None:
    """The name of the linear layer that turns the last hidden state into logits."""
    get = getattr(module, "get_output_embeddings", None)
    layer = get() if get is not None else None
    if layer is None:
        return None
    return next((name for name, m in module.named_modules() if m is layer), None)
