"""Pictures as a model takes them, made when they are asked for: thousands of them fit no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bitgate.sources.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]  #: left, upper, right and lower edge, in pixels


@dataclass(frozen=True)
class Look:
    """How a picture becomes numbers: (pixel / 255 - mean) / std, after it is scaled.

    One mean and std a channel: three for colours, one for grey.
    """

    height: int
    width: int
    mean: Sequence[float]
    std: Sequence[float]

    def tensor(self, picture: Any, box: Box | None = None) -> Tensor:
        """A picture of Pillow's, or the part of it in the box: float32 [channels, height, width].

        Pixels are averaged over what they cover (Pillow's bilinear filter widens when it shrinks).
        """
        import numpy as np
        import torch
        from PIL import Image

        picture = picture.convert("RGB" if len(self.mean) == 3 else "L")
        size = self.width, self.height
        scaled = picture.resize(size, Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(scaled, np.float32).reshape(self.height, self.width, -1) / 255
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class Pictures:
    """Like a tensor [n, channels, height, width] of which a row exists while it is used.

    A number gives a picture, a slice a tensor of some, and a list of numbers these as `Pictures`.
    """

    def __init__(self, makers: Sequence[Callable[[], Tensor]]) -> None:
        self.makers = makers

    def __len__(self) -> int:
        return len(self.makers)

    def __iter__(self) -> Iterator[Tensor]:
        return (make() for make in self.makers)

    @overload
    def __getitem__(self, which: int | slice) -> Tensor: ...

    @overload
    def __getitem__(self, which: list[int]) -> Pictures: ...

    def __getitem__(self, which: int | slice | list[int]) -> Tensor | Pictures:
        import torch

        if isinstance(which, int):
            return self.makers[which]()
        if isinstance(which, list):
            return Pictures([self.makers[number] for number in which])
        return torch.stack([make() for make in self.makers[which]])


def opened(path: Path) -> Any:
    """The picture in a file, read whole.

    Raises:
        SourceError: if Pillow cannot read it.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # whatever a damaged file makes of a decoder
        raise SourceError(f"{path.name} is no picture that can be read: {error}") from error


def crops(width: int, height: int, scales: Sequence[float], step: float) -> Iterator[Box]:
    """Squares that cover a picture: each of the scales is a share of its shorter side, and from one
    square to the next it is at most `step` of a square's side."""
    for scale in scales:
        side = round(scale * min(width, height))
        for upper in _places(height - side, step * side):
            for left in _places(width - side, step * side):
                yield left, upper, left + side, upper + side


def _places(room: int, step: float) -> list[int]:
    """Evenly spaced from 0 to `room`."""
    intervals = ceil(room / step)
    return [round(room * number / max(1, intervals)) for number in range(intervals + 1)]
