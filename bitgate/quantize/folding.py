"""Lists of layers in which blocks repeat, written once each.

`{"model.layers.[0-29]": {"mlp.up_proj": "1536x576"}, "lm_head": "49152x576 bias"}`: a name is
followed by outputs x inputs, and blocks that follow each other and are alike are one entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from bitgate.quantize.shapes import LinearShape, TensorShape

#: a layer's name, and what is within a block; nested as blocks are
Folded = dict[str, Any]

_IN_BLOCK = re.compile(r"((?:.*?\.)??)(\d+)\.(.+)")
_BLOCKS = re.compile(r"(.*)\[(\d+)-(\d+)\]")
_LAYER = re.compile(r"(\d+)x(\d+)( bias)?")
_TENSOR = re.compile(r"((?:\d+(?:x\d+)*)?)(?: ([A-Z]+\d*))?")


def fold(linears: Iterable[LinearShape]) -> Folded:
    """Layers in a model's order, in which those of a block follow each other."""
    return _fold([(linear.name, _written(linear)) for linear in linears])


def unfold(folded: Folded) -> Iterator[LinearShape]:
    """The layers again, in the same order.

    Raises:
        ValueError: for what `fold` does not write.
    """
    for name, written in _unfold(folded, ""):
        found = _LAYER.fullmatch(written)
        if found is None:
            raise ValueError(f"{name}: {written!r} is no shape such as '576x576'")
        yield LinearShape(name, int(found[1]), int(found[2]), bool(found[3]))


def fold_tensors(tensors: Iterable[TensorShape]) -> Folded:
    """Other tensors in a model's order: `{"norm.weight": "576", "norm.count": " I64"}`."""
    return _fold([(tensor.name, _written_tensor(tensor)) for tensor in tensors])


def unfold_tensors(folded: Folded) -> Iterator[TensorShape]:
    """The tensors again, in the same order.

    Raises:
        ValueError: for what `fold_tensors` does not write.
    """
    for name, written in _unfold(folded, ""):
        found = _TENSOR.fullmatch(written)
        if found is None:
            raise ValueError(f"{name}: {written!r} is no shape such as '576' or '49152x576'")
        yield TensorShape(name, tuple(map(int, filter(None, found[1].split("x")))), found[2])


def _written_tensor(tensor: TensorShape) -> str:
    kind = f" {tensor.integer}" if tensor.integer else ""
    return "x".join(map(str, tensor.shape)) + kind


def _written(linear: LinearShape) -> str:
    return f"{linear.out_features}x{linear.in_features}{' bias' if linear.bias else ''}"


def _fold(layers: list[tuple[str, str]]) -> Folded:
    out: Folded = {}
    for stem, inside in groupby(layers, key=lambda layer: _stem(layer[0])):
        if stem is None:
            out.update(inside)
            continue
        blocks: list[tuple[int, list[tuple[str, str]]]] = []
        for name, written in inside:
            _, number, rest = _parts(name)
            if not blocks or blocks[-1][0] != number:
                blocks.append((number, []))
            blocks[-1][1].append((rest, written))
        for first, last, content in _runs(blocks):
            out[f"{stem}[{first}-{last}]"] = _fold(content)
    return out


def _runs(
    blocks: list[tuple[int, list[tuple[str, str]]]],
) -> Iterator[tuple[int, int, list[tuple[str, str]]]]:
    """Blocks that follow each other and hold the same: the first's number, the last's, and it."""
    first, last, content = blocks[0][0], *blocks[0]
    for number, inside in blocks[1:]:
        if number != last + 1 or inside != content:
            yield first, last, content
            first, content = number, inside
        last = number
    yield first, last, content


def _unfold(folded: Folded, before: str) -> Iterator[tuple[str, str]]:
    for key, value in folded.items():
        blocks = _BLOCKS.fullmatch(key) if isinstance(value, dict) else None
        if blocks is not None:
            stem, first, last = blocks[1], int(blocks[2]), int(blocks[3])
            for number in range(first, last + 1):
                yield from _unfold(value, f"{before}{stem}{number}.")
        elif isinstance(value, str):
            yield before + key, value
        else:
            raise ValueError(f"{before}{key}: expected a shape, or blocks such as 'layers.[0-29]'")


def _stem(name: str) -> str | None:
    """What stands before the outermost block's number, `model.layers.`; None outside of any."""
    found = _IN_BLOCK.fullmatch(name)
    return None if found is None else found[1]


def _parts(name: str) -> tuple[str, int, str]:
    found = _IN_BLOCK.fullmatch(name)
    assert found is not None
    return found[1], int(found[2]), found[3]
