"""Formats of images: tables of pixels, arrays, and pictures in files or behind a hub."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from bitgate.catalog import Entry, HubSource, LabelledDataset, LocalSource, Source, nearest
from bitgate.sources.arrays import read_array
from bitgate.sources.errors import SourceError
from bitgate.sources.fetch import SingleFile, fetch_once
from bitgate.sources.hub import fetch_records
from bitgate.sources.pictures import Look, Pictures, crops, opened

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Positive = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(gt=0)]
OptionsT = TypeVar("OptionsT", bound=Entry)


# --- options -------------------------------------------------------------------------------


class PixelOptions(Entry):
    """Options of formats whose images are rows of numbers: (pixel / largest - mean) / std."""

    shape: tuple[Size, Size, Size] = Field(strict=False, description="channels, height, width")
    largest: Positive = Field(255.0, description="the pixel that stands for 1")
    mean: float = 0.0
    std: Positive = 1.0


class PictureOptions(Entry):
    """Options of formats whose images are pictures: (pixel / 255 - mean) / std of each channel,
    three for colours or one for grey."""

    size: tuple[Size, Size] = Field(strict=False, description="height and width they are scaled to")
    mean: tuple[float, ...] = Field((0.0, 0.0, 0.0), strict=False)
    std: tuple[Positive, ...] = Field((1.0, 1.0, 1.0), strict=False)

    @model_validator(mode="after")
    def _channels_agree(self) -> PictureOptions:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("mean and std: expected three numbers each, or one each for grey")
        return self

    @property
    def look(self) -> Look:
        return Look(*self.size, self.mean, self.std)


class CropOptions(PictureOptions):
    """Options of photos that are cut into overlapping squares."""

    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0,), strict=False, min_length=1, description="sides, as shares of the shorter side"
    )
    step: Annotated[float, Field(gt=0.01)] = Field(0.5, description="to the next, in sides")


class HubOptions(PictureOptions):
    """Options of a hub's dataset of pictures."""

    image: str = Field("image", description="the column with pictures")
    label: str = Field("label", description="the column with labels, numbers from 0")


def _options(kind: type[OptionsT], dataset: LabelledDataset) -> OptionsT:
    if dataset.of != "images":
        raise SourceError(f"of: format {dataset.format!r} holds images, not {dataset.of}")
    try:
        return kind.model_validate(dataset.options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("options", *first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = nearest(str(first["loc"][0]), kind.model_fields)
            raise SourceError(f"{key}: format {dataset.format} has no such key; {hint}") from None
        if first["type"] == "missing":
            raise SourceError(f"{key}: format {dataset.format} needs this key") from None
        message = first["msg"].removeprefix("Value error, ")
        raise SourceError(f"{key}: {message} (got {first['input']!r})") from None


# --- formats -------------------------------------------------------------------------------


def pixels_csv(
    dataset: LabelledDataset, source: Source, label: str
) -> tuple[Tensor, Sequence[int] | None]:
    """Rows of numbers, gzipped or not: the pixels of an image, then its label."""
    import numpy as np

    options = _options(PixelOptions, dataset)
    _refuse_labels_of_their_own(dataset)
    tables = []
    for path in _files(dataset, source, label):
        lines = [line for line in _text(path).splitlines() if line.strip()]
        if not lines:
            continue
        try:
            table = np.loadtxt(lines, delimiter=",", ndmin=2)
        except ValueError as error:
            raise SourceError(f"{path.name} is no table of numbers: {error}") from error
        pixels = table.shape[1] - 1
        if pixels != int(np.prod(options.shape)):
            raise SourceError(
                f"options.shape: {list(options.shape)} is {int(np.prod(options.shape))} pixels, "
                f"and a row of {path.name} has {pixels} before its label"
            )
        tables.append(table)
    table = np.concatenate([np.empty((0, int(np.prod(options.shape)) + 1)), *tables])
    if (table[:, -1] % 1).any():
        raise SourceError("a label is no whole number; it is the last of its row")
    return _tensor(table[:, :-1], options), table[:, -1].astype(int).tolist()


def pickled_arrays(
    dataset: LabelledDataset, source: Source, label: str
) -> tuple[Tensor, Sequence[int] | None]:
    """A pickled array of images [n, ...], and one of labels [n] in the file that `labels` is."""
    options = _options(PixelOptions, dataset)
    (path,) = _files(dataset, source, label, several=False)
    images = read_array(path)
    wanted = tuple(size for size in options.shape if size != 1)
    has = tuple(size for size in images.shape[1:] if size != 1)
    if not images.ndim or wanted != has:
        raise SourceError(
            f"options.shape: {list(options.shape)} was expected of each image, and {path.name} "
            f"has {list(images.shape[1:])}"
        )
    if dataset.labels is None:
        return _tensor(images, options), None
    there = fetch_once(_file(dataset.labels, "labels"), label)
    labels = read_array(there)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise SourceError(
            f"labels: {there.name} is {labels.dtype} {list(labels.shape)}, where "
            f"{len(images)} whole numbers were expected"
        )
    return _tensor(images, options), labels.tolist()


def photo_crops(
    dataset: LabelledDataset, source: Source, label: str
) -> tuple[Pictures, Sequence[int] | None]:
    """Overlapping squares out of photos, which have no labels."""
    options = _options(CropOptions, dataset)
    _refuse_labels_of_their_own(dataset)
    makers = []
    for path in _files(dataset, source, label):
        photo = opened(path)
        width, height = photo.size
        makers += [
            partial(options.look.tensor, photo, box)
            for box in crops(width, height, options.scales, options.step)
        ]
    return Pictures(makers), None


def picture_folder(
    dataset: LabelledDataset, source: Source, label: str
) -> tuple[Pictures, Sequence[int] | None]:
    """A folder on this machine that has a folder for each class, called as it is."""
    options = _options(PictureOptions, dataset)
    _refuse_labels_of_their_own(dataset)
    if not isinstance(source, LocalSource) or not source.path.is_dir():
        raise SourceError("source: format picture-folder reads a folder of kind local")
    paths, labels = list[Path](), list[int]()
    for folder in sorted(path for path in source.path.iterdir() if path.is_dir()):
        if folder.name not in dataset.classes:
            hint = nearest(folder.name, dataset.classes)
            raise SourceError(f"classes: {folder} is none of them; {hint}")
        found = sorted(path for path in folder.iterdir() if path.is_file())
        paths += found
        labels += [dataset.classes.index(folder.name)] * len(found)

    def make(path: Path) -> Tensor:
        return options.look.tensor(opened(path))

    return Pictures([partial(make, path) for path in paths]), labels


def hub_pictures(
    dataset: LabelledDataset, source: Source, label: str
) -> tuple[Pictures, Sequence[int] | None]:
    """A column of pictures and one of labels of a hub's dataset."""
    options = _options(HubOptions, dataset)
    _refuse_labels_of_their_own(dataset)
    if not isinstance(source, HubSource):
        raise SourceError("source: format hub-pictures reads a source of kind hub")
    records = fetch_records(source, (options.image, options.label), label)
    labels = list(records[options.label])
    for number, found in enumerate(labels, 1):
        if type(found) is not int:
            raise SourceError(
                f"row {number}: its label {found!r} is no whole number; options.label names the "
                "column that has them, counted from 0"
            )

    def make(number: int) -> Tensor:
        try:
            return options.look.tensor(records[number][options.image])
        except Exception as error:  # of nothing, of a text, of whatever a decoder makes of it
            raise SourceError(
                f"row {number + 1}: its image is no picture that can be read ({error!r}); "
                "options.image names the column that has them; correct or remove the row"
            ) from error

    makers = [partial(make, number) for number in range(len(records))]
    return Pictures(makers), labels


FORMATS: dict[str, Callable[..., tuple[Any, Sequence[int] | None]]] = {
    "pixels-csv": pixels_csv,
    "pickled-arrays": pickled_arrays,
    "photo-crops": photo_crops,
    "picture-folder": picture_folder,
    "hub-pictures": hub_pictures,
}


# --- files ---------------------------------------------------------------------------------


def _files(
    dataset: LabelledDataset, source: Source, label: str, several: bool = True
) -> list[Path]:
    more = dataset.more if source == dataset.source else ()
    if more and not several:
        raise SourceError(f"more: format {dataset.format} reads one file of images")
    keys = ["source", *(f"more.{number}" for number in range(len(more)))]
    return [
        fetch_once(_file(one, key), label) for key, one in zip(keys, (source, *more), strict=True)
    ]


def _file(source: Source, key: str) -> SingleFile:
    if not isinstance(source, SingleFile):
        raise SourceError(f"{key}: kind {source.kind!r} is no file, which this format reads")
    return source


def _refuse_labels_of_their_own(dataset: LabelledDataset) -> None:
    if dataset.labels is not None:
        raise SourceError(f"labels: format {dataset.format} reads no file of labels; leave it out")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise SourceError(f"{path.name} is truncated or damaged ({error})") from error


def _tensor(pixels: np.ndarray, options: PixelOptions) -> Tensor:
    """Rows of pixels -> float32 [n, channels, height, width]."""
    import numpy as np
    import torch

    if not np.isfinite(pixels).all():
        raise SourceError("a pixel is no finite number")
    scaled = (pixels.astype(np.float32) / options.largest - options.mean) / options.std
    return torch.from_numpy(scaled.astype(np.float32).reshape(-1, *options.shape))
