"""What a table of the catalog's TOML may say of models, datasets and recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Cadence = Literal["commit", "nightly", "weekly"]
CADENCES: tuple[Cadence, ...] = get_args(Cadence)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class Entry(BaseModel):
    """A table of a TOML file: no unknown keys, never changed after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# --- where things come from ----------------------------------------------------------------


class PackageSource(Entry):
    """A file inside a package of the user's package registry."""

    kind: Literal["package"]
    package: str
    version: str
    file: str = Field(description="path of the file inside the unpacked package")
    sha256: Sha256
    python: str | None = Field(None, description="choose this Python's wheel, whatever runs here")
    platform: str | None = Field(None, description="choose this platform's wheel")
    sdist: bool = Field(
        False, description="the source distribution; pip runs its setup.py for the metadata"
    )

    @model_validator(mode="after")
    def _an_sdist_is_one_for_all(self) -> PackageSource:
        if self.sdist and (self.python or self.platform):
            raise ValueError("`sdist` goes without `python` and `platform`, which choose a wheel")
        return self


class HubSource(Entry):
    """A repository of a model hub at a pinned revision."""

    kind: Literal["hub"]
    repo: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    subset: str | None = None
    split: str | None = None


class ShapesSource(Entry):
    """No weights at all: the model's `config` filled with seeded random numbers."""

    kind: Literal["shapes"]
    seed: int = 0


class LocalSource(Entry):
    """A directory or file on this machine; a relative path starts at the TOML file's folder."""

    kind: Literal["local"]
    path: Path = Field(strict=False)


class FileSource(Entry):
    """One file behind a URL (https, http, file) or a path, pinned by its sha256."""

    kind: Literal["file"]
    url: str
    sha256: Sha256


class TrainedSource(Entry):
    """Trained here, once, and kept: a classification head on a frozen `base`, or without one the
    whole of the model's `config`, on the part of `dataset` that is for training.

    TOML gives the names of `base`, a model, and of `dataset`, a labelled dataset.
    """

    kind: Literal["trained"]
    base: Model | None = None
    dataset: LabelledDataset
    epochs: int = Field(20, gt=0)
    batch: int = Field(64, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    seed: int = 0


Source = Annotated[
    PackageSource | HubSource | ShapesSource | LocalSource | FileSource | TrainedSource,
    Field(discriminator="kind"),
]
SOURCES: dict[str, type[Entry]] = {
    "package": PackageSource,
    "hub": HubSource,
    "shapes": ShapesSource,
    "local": LocalSource,
    "file": FileSource,
    "trained": TrainedSource,
}


# --- models and datasets -------------------------------------------------------------------


#: what a model is asked: the next token, or to which class a text or an image belongs
Task = Literal["causal-lm", "text-classification", "image-classification"]


class Model(Entry):
    """An entry of `models.toml`: where the weights come from, the family, the task."""

    name: Name
    family: Name
    task: Task = "causal-lm"
    source: Source
    format: Literal["transformers", "gguf", "state-dict", "shapes"] = "transformers"
    keys: Literal["name", "order"] = Field(
        "name",
        description="how tensors of a state dict find their places: by name, or in the order of "
        "both, for the same architecture under other names; every shape has to agree",
    )
    config: dict[str, Any] | None = Field(
        None, description="architecture, for sources that bring no config.json of their own"
    )
    tokenizer: Path | None = Field(
        None, strict=False, description="directory, if the source has no tokenizer"
    )

    @model_validator(mode="after")
    def _shapes_need_a_config(self) -> Model:
        if self.source.kind == "shapes":
            if self.config is None:
                raise ValueError("a source of kind shapes needs a `config`")
            if self.format not in ("transformers", "shapes"):
                raise ValueError(f"`format` {self.format} does not go with a source of shapes")
        elif self.format == "shapes":
            raise ValueError("`format` shapes goes with a source of kind shapes only")
        if self.keys != "name" and self.format != "state-dict":
            raise ValueError("`keys` goes with `format` state-dict only")
        if isinstance(self.source, TrainedSource):
            if self.task == "causal-lm":
                raise ValueError("a source of kind trained is for `task`s of classification")
            if (self.source.base is None) == (self.config is None):
                raise ValueError(
                    "a source of kind trained needs either its `base`, whose head is trained, or "
                    "a `config`, all of which is"
                )
        return self


class Dataset(Entry):
    """An entry of `datasets.toml`: a text together with the protocol it is scored by.

    Perplexity is a property of model, text and protocol, so all three are named: `tokens` are
    scored before anything is judged, more (up to `tokens_limit`) only while a gate is undecided;
    windows of `window` tokens advance by `stride` and never cross documents.
    """

    name: Name
    source: Source
    format: Literal["mediawiki", "plain", "jsonl", "hub"]
    column: str = "text"
    join: str | None = Field(None, description="join all records with this: one long document")
    tokens: int = Field(8192, gt=0)
    tokens_limit: int | None = None
    window: int = Field(256, gt=1)
    stride: int | None = Field(None, gt=0)
    bos: bool = False
    seed: int = Field(0, description="of the order in which windows are drawn")
    avoid: tuple[Dataset, ...] = Field(
        (), description="no window of this one touches a window of those; TOML names them"
    )

    @property
    def limit(self) -> int:
        """Tokens that are scored at most, but for the rest of the last window."""
        return self.tokens_limit or 2 * self.tokens

    def too_few_for(self, windows: int) -> tuple[str, int] | None:
        """The key that stops scoring before there are so many windows, whatever the text, and the
        least that it must be; None if there may be as many."""
        scored = min(self.stride or self.window, self.window - 1 + self.bos)  # in each, or more
        least = (windows - 1) * scored + 1
        if self.limit >= least:
            return None
        return (
            ("tokens", least // 2 + least % 2)
            if self.tokens_limit is None
            else ("tokens_limit", least)
        )

    def shares_text_with(self, other: Dataset) -> bool:
        """Whether both may draw the same tokens: neither avoids the other in the same text."""
        same = (self.source, self.format, self.join) == (other.source, other.format, other.join)
        avoided = {text.name for text in self.avoid}, {text.name for text in other.avoid}
        apart = other.name in avoided[0] or self.name in avoided[1]
        return same and not apart

    def how_to_avoid(self, other: Dataset) -> str:
        """The first half of a remedy where both may draw the same tokens; nothing where they are
        one dataset, which cannot avoid itself."""
        if self.name == other.name:
            return ""
        return f'add avoid = ["{other.name}"] to dataset {self.name}, or '


class LabelledDataset(Entry):
    """A `[labelled.NAME]` of `datasets.toml`: items and the class that each belongs to, with the
    protocol by which they are drawn.

    Items are drawn in an order of hashes. The first are evaluated: `items` before anything is
    judged, up to `items_limit` while a gate is undecided. Of the others `train_items` are for
    training and `validation_items` for the curve beside it; with `training` these come from there.
    """

    name: Name
    of: Literal["texts", "images"]
    source: Source
    training: Source | None = None
    labels: Source | None = Field(None, description="of images, if in a file of their own")
    more: tuple[Source, ...] = Field(
        (), strict=False, description="other files of images, read after the first"
    )
    format: Name
    classes: tuple[str, ...] = Field(
        (), strict=False, description="names of the classes; none: items without labels"
    )
    items: int = Field(256, gt=0)
    items_limit: int | None = Field(None, gt=0)
    train_items: int = Field(0, ge=0)
    validation_items: int = Field(0, ge=0)
    seed: int = Field(0, description="of the order in which items are drawn")
    longest: int = Field(64, gt=0, description="tokens of a text; what is longer is cut")
    options: dict[str, Any] = Field({}, description="what its format knows beside these")

    @property
    def limit(self) -> int:
        """Items that are evaluated at most."""
        return self.items_limit or self.items

    @model_validator(mode="after")
    def _counts_fit(self) -> LabelledDataset:
        if self.items_limit is not None and self.items_limit < self.items:
            raise ValueError(f"`items_limit` must be at least `items`, {self.items}")
        if self.training is not None and not self.train_items:
            raise ValueError("`training` needs `train_items`")
        if self.of == "texts" and (self.labels is not None or self.more):
            raise ValueError("`labels` and `more` are for images")
        if self.training is not None and self.labels is not None:
            raise ValueError("`training` does not go with `labels`, which belong to one file")
        return self

    @model_validator(mode="after")
    def _classes_are_told_apart(self) -> LabelledDataset:
        for number, name in enumerate(self.classes):
            if self.classes.index(name) < number:
                raise ValueError(f"`classes`: {name!r} is named more than once; rename one")
            if name.strip().isdecimal() and name != str(number):
                raise ValueError(
                    f"`classes`: {name!r} would be read as a number, and this one's is {number}, "
                    "counted from 0; rename it"
                )
        return self


# --- recipes -------------------------------------------------------------------------------


def _left_out(value: Any) -> Any:
    if value is not None:
        raise ValueError("this method has no such key; leave the key out")
    return value


#: the type of a key that a method has not, though recipes have it
LeftOut = Annotated[None, BeforeValidator(_left_out)]


class Recipe(Entry):
    """How a model is quantized. Each method subclasses this with the fields that it knows."""

    method: Name
    bits: int | None = None
    group_size: int | None = None
    kernel: str = Field("auto", description="`auto` chooses by device; a name forces it")

    #: keys that TOML may give as lists; the product of them makes one recipe each
    crossed: ClassVar[tuple[str, ...]] = ("bits", "group_size")
    #: keys for which TOML gives the name of a dataset: what the method calibrates with
    calibrated_by: ClassVar[tuple[str, ...]] = ()
    #: the dataset that such a key means where TOML gives none
    default_text: ClassVar[str | None] = None
    #: keys for which TOML gives the name of a plan, or a list of them
    planned_by: ClassVar[tuple[str, ...]] = ()

    def calibration_texts(self) -> Iterator[Dataset]:
        """What the quantized model has seen before it is measured."""
        for key in self.calibrated_by:
            if isinstance(text := getattr(self, key), Dataset):
                yield text

    def mixed(self) -> bool:
        """Whether its layers are of several kinds, so that several kernels may serve them."""
        return any(getattr(self, key) for key in self.planned_by)

    def marks(self) -> Iterator[str]:
        """What distinguishes this recipe from its method's default at these bits and group."""
        if self.kernel != "auto":
            yield self.kernel

    @property
    def width(self) -> str:
        """What the name says of bits."""
        return f"w{self.bits}" if self.bits else ""

    @property
    def name(self) -> str:
        group = f"g{self.group_size}" if self.group_size else ""
        return "-".join(part for part in (self.method, self.width + group, *self.marks()) if part)


TrainedSource.model_rebuild()
Model.model_rebuild()
