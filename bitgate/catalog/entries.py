"""What a table of the catalog's TOML may say: models, datasets, recipes, workloads, the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


Source = Annotated[
    PackageSource | HubSource | ShapesSource | LocalSource | FileSource,
    Field(discriminator="kind"),
]
SOURCES: dict[str, type[Entry]] = {
    "package": PackageSource,
    "hub": HubSource,
    "shapes": ShapesSource,
    "local": LocalSource,
    "file": FileSource,
}


# --- models and datasets -------------------------------------------------------------------


class Model(Entry):
    """An entry of `models.toml`: where the weights come from, the family, the task."""

    name: Name
    family: Name
    task: Literal["causal-lm"] = "causal-lm"
    source: Source
    format: Literal["transformers", "gguf", "state-dict", "shapes"] = "transformers"
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


# --- recipes -------------------------------------------------------------------------------


class Recipe(Entry):
    """How a model is quantized. Each method subclasses this with the fields that it knows."""

    method: Name
    bits: int | None = None
    group_size: int | None = None
    kernel: str = Field("auto", description="`auto` chooses by device; a name forces it")

    #: keys that TOML may give as lists; the product of them makes one recipe each
    crossed: ClassVar[tuple[str, ...]] = ("bits", "group_size")

    def marks(self) -> Iterator[str]:
        """What distinguishes this recipe from its method's default at these bits and group."""
        if self.kernel != "auto":
            yield self.kernel

    @property
    def name(self) -> str:
        bits = f"w{self.bits}" if self.bits else ""
        group = f"g{self.group_size}" if self.group_size else ""
        return "-".join(part for part in (self.method, bits + group, *self.marks()) if part)


# --- workloads -----------------------------------------------------------------------------


class QuantizeWorkload(Entry):
    """Quantize the model; it needs nothing else, so it has no name in ids."""

    kind: Literal["quantize"] = "quantize"
    name: str = ""


class TextWorkload(Entry):
    """Score a dataset's text token by token beside the base."""

    kind: Literal["perplexity"] = "perplexity"
    dataset: Dataset

    @property
    def name(self) -> str:
        return self.dataset.name


class PhaseWorkload(Entry):
    """Run one phase of generation, beside the base, for its speed.

    `output` tokens are decoded after a prompt of `prompt` tokens, `batch` sequences at a time.
    Base and quantized are both compiled or both eager, so that a speed-up names its base.
    """

    kind: Literal["decode", "prefill"]
    name: Name
    batch: int = Field(1, gt=0)
    prompt: int = Field(64, gt=0)
    output: int = Field(32, ge=0)
    compiled: bool = False
    threads: int | None = Field(None, gt=0, description="threads on a CPU; default: --threads")

    @model_validator(mode="after")
    def _only_steps_are_compiled(self) -> PhaseWorkload:
        if self.compiled and self.kind != "decode":
            raise ValueError("`compiled` goes with decode only")
        if self.kind == "decode" and self.output < 1:
            raise ValueError("`output` must be at least 1 to decode")
        return self


Workload = QuantizeWorkload | TextWorkload | PhaseWorkload
Kind = Literal["quantize", "perplexity", "decode", "prefill"]
KINDS: tuple[Kind, ...] = get_args(Kind)


# --- the matrix ----------------------------------------------------------------------------


class MatrixEntry(Entry):
    """One `[[matrix]]` table: these models meet these recipes and workloads at this cadence."""

    cadence: Cadence
    models: list[str] = Field(min_length=1)
    recipes: list[str] = Field(min_length=1)
    quantize: bool = False
    perplexity: list[str] = []
    decode: list[str] = []
    prefill: list[str] = []

    @model_validator(mode="after")
    def _asks_something(self) -> MatrixEntry:
        if not any(getattr(self, kind) for kind in KINDS):
            raise ValueError(f"no workload: give at least one of {', '.join(KINDS)}")
        return self
