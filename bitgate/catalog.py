"""The catalog: models, datasets, recipes and the matrix that crosses them, read from TOML.

Everything is checked while it is read, and an error names the file, the entry and the key.
This is the only place that makes ids, and it imports neither torch nor transformers.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Cadence = Literal["commit", "nightly", "weekly"]
T = TypeVar("T")
EntryT = TypeVar("EntryT", bound=BaseModel)

CADENCES: tuple[Cadence, ...] = get_args(Cadence)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class CatalogError(ValueError):
    """Something in the catalog is wrong; the message names file, entry, key and remedy."""


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


@dataclass(frozen=True)
class Execution:
    """How a served model runs; known only when it does."""

    device: str
    dtype: str
    threads: int
    kernel: str
    compiled: bool = False

    def fields(self) -> dict[str, str | bool]:
        """What a gate can match on, beside a case's static fields."""
        return {
            "device": self.device.split(":")[0],
            "kernel": self.kernel,
            "compiled": self.compiled,
        }


# --- cells ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A model under a recipe."""

    model: Model
    recipe: Recipe

    @property
    def id(self) -> str:
        return f"{self.model.name}-{self.recipe.name}"


@dataclass(frozen=True)
class Case:
    """A cell with one workload: one test of `bench/`."""

    cell: Cell
    workload: Workload
    cadence: Cadence

    @property
    def kind(self) -> Kind:
        return self.workload.kind

    @property
    def id(self) -> str:
        return "-".join(part for part in (self.cell.id, self.workload.name) if part)

    @property
    def key(self) -> str:
        """Unique over all benchmarks, as ids alone are not."""
        return f"{self.kind}[{self.id}]"

    def static_fields(self) -> dict[str, str | int | None]:
        """What a gate can match on before anything runs; a field that does not apply is None."""
        workload = self.workload
        phase = workload if isinstance(workload, PhaseWorkload) else None
        return {
            "model": self.cell.model.name,
            "family": self.cell.model.family,
            "task": self.cell.model.task,
            "method": self.cell.recipe.method,
            "recipe": self.cell.recipe.name,
            "bits": self.cell.recipe.bits,
            "group_size": self.cell.recipe.group_size,
            "dataset": workload.dataset.name if isinstance(workload, TextWorkload) else None,
            "phase": phase.kind if phase else None,
            "batch": phase.batch if phase else None,
        }


STATIC_FIELDS = (
    "model",
    "family",
    "task",
    "method",
    "recipe",
    "bits",
    "group_size",
    "dataset",
    "phase",
    "batch",
)


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


@dataclass
class Catalog:
    """All entries by name, and the matrix."""

    models: dict[str, Model] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    phases: dict[tuple[str, str], PhaseWorkload] = field(default_factory=dict)
    matrix: list[tuple[str, MatrixEntry]] = field(default_factory=list)

    def cases(self, cadence: Cadence = "weekly") -> list[Case]:
        """Every case due at this cadence, in matrix order; slower cadences include faster ones.

        A case that several entries name is due at the fastest cadence among them.
        """
        found: dict[str, Case] = {}
        for where, entry in self.matrix:
            for model, recipe in itertools.product(entry.models, entry.recipes):
                cell = Cell(
                    self._lookup(self.models, model, where, "models"),
                    self._lookup(self.recipes, recipe, where, "recipes"),
                )
                for workload in self._workloads(entry, where):
                    case = Case(cell, workload, entry.cadence)
                    known = found.get(case.key)
                    if known is not None and (known.cell, known.workload) != (cell, workload):
                        raise CatalogError(
                            f"{where}: {case.key} is the id of two cases: of recipe "
                            f"{known.cell.recipe.name} and of {recipe}; rename a workload or label"
                        )
                    if known is None or _rank(entry.cadence) < _rank(known.cadence):
                        found[case.key] = case
        return [case for case in found.values() if _rank(case.cadence) <= _rank(cadence)]

    def _workloads(self, entry: MatrixEntry, where: str) -> Iterator[Workload]:
        if entry.quantize:
            yield QuantizeWorkload()
        for name in entry.perplexity:
            yield TextWorkload(dataset=self._lookup(self.datasets, name, where, "perplexity"))
        for kind in ("decode", "prefill"):
            named = {name: phase for (of, name), phase in self.phases.items() if of == kind}
            for name in getattr(entry, kind):
                yield self._lookup(named, name, where, kind)

    @staticmethod
    def _lookup(table: Mapping[str, T], name: str, where: str, key: str) -> T:
        try:
            return table[name]
        except KeyError:
            raise CatalogError(
                f"{where}: {key}: nothing is called {name!r}; {nearest(name, table)}"
            ) from None


def _rank(cadence: Cadence) -> int:
    return CADENCES.index(cadence)


SHOWN = 12  #: names in an error before it says how many more there are


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?`, or what there is: the remedy in an error about a name."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:SHOWN]) or "none"
    return f"there is {shown}" + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")


# --- reading -------------------------------------------------------------------------------

DEFAULTS = Path(__file__).parent / "defaults"


def load(folder: Path, methods: Mapping[str, type[Recipe]]) -> Catalog:
    """Read the default catalog, then a project's own `models.toml`, `datasets.toml`,
    `recipes.toml` and `matrix.toml` in `folder`, which add to it and override it by name.

    `methods` maps a method's name to the recipe class that checks its keys.
    """
    if not (folder / "matrix.toml").is_file():
        raise CatalogError(
            f"{folder / 'matrix.toml'} is missing: it says which models meet which recipes; "
            "give the folder that has it with --catalog"
        )
    catalog = Catalog()
    for path in (DEFAULTS, folder):
        _read_models(catalog, path / "models.toml")
        _read_datasets(catalog, path / "datasets.toml")
        _read_recipes(catalog, path / "recipes.toml", methods)
    _read_matrix(catalog, folder / "matrix.toml")
    catalog.cases()  # every name is looked up now, not when its cadence comes
    return catalog


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; none if there is no such file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: not valid TOML: {error}") from None


def parse(entry: type[EntryT], data: Any, where: str) -> EntryT:
    """`entry` from TOML data; the error names each offending key of `where`."""
    try:
        return entry.model_validate(data)
    except ValidationError as error:
        raise CatalogError("\n".join(_explain(entry, where, e) for e in error.errors())) from None


def _explain(entry: type[BaseModel], where: str, error: Any) -> str:
    loc, message = error["loc"], error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and not loc:  # it is about several keys, and names them
        return f"{where}: {message}"
    known = set(entry.model_fields) - {"name"}
    if loc[:1] == ("source",) and len(loc) > 1:  # pydantic puts the kind, which is no key, between
        known, loc = set(SOURCES[loc[1]].model_fields), (loc[0], *loc[2:])
    key = ".".join(str(part) for part in loc) or "entry"
    if error["type"] == "extra_forbidden":
        hint = f"; {nearest(str(loc[-1]), known)}" if len(loc) == 1 or loc[0] == "source" else ""
        return f"{where}: {key}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{where}: {key}: this key is missing"
    return f"{where}: {key}: {message} (got {error['input']!r})"


def _tables(path: Path, allowed: set[str]) -> dict[str, Any]:
    tables = read_toml(path)
    for key in tables:
        if key not in allowed:
            raise CatalogError(f"{path}: {key}: unknown table; {nearest(key, allowed)}")
    return tables


def _named(path: Path, kind: str, table: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if not isinstance(table, dict):
        raise CatalogError(f"{path}: {kind}: expected tables like [{kind}.some-name]")
    for name, data in table.items():
        if not isinstance(data, dict):
            raise CatalogError(f"{path}: {kind}.{name}: expected a table")
        yield name, f"{path}: [{kind}.{name}]", data


def _read_models(catalog: Catalog, path: Path) -> None:
    for name, where, data in _named(path, "model", _tables(path, {"model"}).get("model", {})):
        model = parse(Model, {**data, "name": name}, where)
        update = _anchored(model.source, path)
        if model.tokenizer is not None:
            update["tokenizer"] = path.parent / model.tokenizer
        catalog.models[name] = model.model_copy(update=update)


def _read_datasets(catalog: Catalog, path: Path) -> None:
    for name, where, data in _named(path, "dataset", _tables(path, {"dataset"}).get("dataset", {})):
        dataset = parse(Dataset, {**data, "name": name}, where)
        if dataset.stride is not None and dataset.stride > dataset.window:
            raise CatalogError(
                f"{where}: stride: {dataset.stride} would skip text; "
                f"give at most window, {dataset.window}"
            )
        if dataset.tokens_limit is not None and dataset.tokens_limit < dataset.tokens:
            raise CatalogError(
                f"{where}: tokens_limit: {dataset.tokens_limit} is too few; "
                f"give at least tokens, {dataset.tokens}"
            )
        catalog.datasets[name] = dataset.model_copy(update=_anchored(dataset.source, path))


def _anchored(source: Source, toml: Path) -> dict[str, Any]:
    if isinstance(source, LocalSource):
        return {"source": source.model_copy(update={"path": toml.parent / source.path})}
    if isinstance(source, FileSource) and "://" not in source.url:
        return {"source": source.model_copy(update={"url": str(toml.parent / source.url)})}
    return {}


def _read_recipes(catalog: Catalog, path: Path, methods: Mapping[str, type[Recipe]]) -> None:
    entries = _tables(path, {"recipe"}).get("recipe", [])
    if not isinstance(entries, list):
        raise CatalogError(f"{path}: recipe: expected [[recipe]] tables")
    read: dict[str, Recipe] = {}
    for number, data in enumerate(entries, 1):
        where = f"{path}: [[recipe]] number {number}"
        if not isinstance(data, dict):
            raise CatalogError(f"{where}: expected a table")
        method = data.get("method")
        if not isinstance(method, str) or method not in methods:
            wrong = "this key is missing" if method is None else f"nothing is called {method!r}"
            raise CatalogError(f"{where}: method: {wrong}; {nearest(str(method), methods)}")
        recipe_type = methods[method]
        crossed = {k: v if isinstance(v := data.get(k), list) else [v] for k in recipe_type.crossed}
        if empty := [key for key, values in crossed.items() if not values]:
            raise CatalogError(f"{where}: {empty[0]}: an empty list makes no recipe")
        for values in itertools.product(*crossed.values()):
            chosen = {k: v for k, v in zip(crossed, values, strict=True) if v is not None}
            recipe = parse(recipe_type, {**data, **chosen}, where)
            if read.setdefault(recipe.name, recipe) != recipe:
                raise CatalogError(
                    f"{where}: two recipes of this file are called {recipe.name}; "
                    "give one of them another `label`"
                )
    catalog.recipes.update(read)


def _read_matrix(catalog: Catalog, path: Path) -> None:
    tables = _tables(path, {"matrix", "decode", "prefill"})
    for kind in ("decode", "prefill"):
        for name, where, data in _named(path, kind, tables.get(kind, {})):
            workload = parse(PhaseWorkload, {**data, "name": name, "kind": kind}, where)
            catalog.phases[kind, name] = workload
    entries = tables.get("matrix", [])
    if not isinstance(entries, list) or not entries:
        raise CatalogError(f"{path}: matrix: expected at least one [[matrix]] table")
    for number, data in enumerate(entries, 1):
        where = f"{path}: [[matrix]] number {number}"
        catalog.matrix.append((where, parse(MatrixEntry, data, where)))
