"""The shapes of models in a small committed file, so that collection knows them without torch."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bitgate.catalog import DEFAULTS, Entry, Model
from bitgate.quantize.folding import fold, fold_tensors, unfold, unfold_tensors
from bitgate.quantize.key_values import CacheShape
from bitgate.quantize.shapes import ConvolutionShape, FileShapes, ModelShapes, Patches
from bitgate.sources import declared

FILE = "shapes.lock.json"
_ABOUT = "written by `bitgate lock`, which --check holds against models.toml"
_PAIR = r"(\d+)x(\d+)"
_PATCHES = re.compile(
    rf"{_PAIR} stride {_PAIR} padding (?:{_PAIR}|(\w+)) dilation {_PAIR} groups (\d+)"
)
_Count = Annotated[int, Field(ge=0)]
_Kept = Annotated[tuple[_Count, _Count | None], Field(strict=False)]


class LockError(ValueError):
    """The file cannot be used; the message names it and the remedy."""


class LockedFile(Entry):
    """What a saved file holds beside linear layers; `config` counts the bytes of its configuration,
    which differ with the release of transformers."""

    task: str
    config: _Count
    tensors: dict[str, Any]
    shared_biases: tuple[str, ...] = Field((), strict=False)

    @classmethod
    def of(cls, file: FileShapes) -> LockedFile:
        return cls(
            task=file.task,
            config=file.config,
            tensors=fold_tensors(file.tensors),
            shared_biases=file.shared_biases,
        )

    def shapes(self) -> FileShapes:
        tensors = tuple(unfold_tensors(self.tensors))
        return FileShapes(tensors, self.config, self.task, self.shared_biases)


class LockedModel(Entry):
    """What the file says of a model; `source` is what `declared` said when it was written."""

    source: str
    head: str | None
    tied: bool
    others: _Count
    transient: _Count
    linears: dict[str, Any]
    convolutions: tuple[dict[str, Any], ...] = Field((), strict=False)
    model_type: str | None = Field(None, description="not in files written before it was asked for")
    file: LockedFile | None = Field(None, description="nor is this")
    cache: tuple[_Kept, ...] | None = Field(
        None, strict=False, description="nor this: numbers of each token, and of how many"
    )
    fixed: _Count = 0
    buffers: _Count = 0
    positions: _Count | None = None

    @classmethod
    def of(cls, source: str, shapes: ModelShapes) -> LockedModel:
        file = shapes.file
        return cls(
            source=source,
            head=shapes.head,
            tied=shapes.tied,
            others=shapes.others,
            transient=shapes.transient,
            linears=fold(shapes.linears),
            convolutions=tuple(map(_written, shapes.convolutions)),
            model_type=shapes.model_type,
            file=None if file is None else LockedFile.of(file),
            cache=shapes.cache,
            fixed=shapes.fixed,
            buffers=shapes.buffers,
            positions=shapes.positions,
        )

    def shapes(self) -> ModelShapes:
        return ModelShapes(
            linears=tuple(unfold(self.linears)),
            others=self.others,
            transient=self.transient,
            head=self.head,
            tied=self.tied,
            convolutions=tuple(map(_read, self.convolutions)),
            model_type=self.model_type,
            file=None if self.file is None else self.file.shapes(),
            cache=None if self.cache is None else tuple(CacheShape(*one) for one in self.cache),
            fixed=self.fixed,
            buffers=self.buffers,
            positions=self.positions,
        )


def _written(convolution: ConvolutionShape) -> dict[str, Any]:
    return {**asdict(convolution), "patches": _patches_written(convolution.patches)}


def _read(written: dict[str, Any]) -> ConvolutionShape:
    return ConvolutionShape(**{**written, "patches": _patches_read(written["patches"])})


def _patches_written(patches: Patches) -> str:
    """`"3x3 stride 2x2 padding 1x1 dilation 1x1 groups 32"`."""

    def pair(of: tuple[int, int] | str) -> str:
        return of if isinstance(of, str) else "x".join(map(str, of))

    return (
        f"{pair(patches.size)} stride {pair(patches.stride)} padding {pair(patches.padding)} "
        f"dilation {pair(patches.dilation)} groups {patches.groups}"
    )


def _patches_read(written: str) -> Patches:
    """The same again.

    Raises:
        ValueError: for what `_patches_written` does not write.
    """
    found = _PATCHES.fullmatch(written)
    if found is None:
        raise ValueError(
            f"{written!r} is not as '3x3 stride 1x1 padding 0x0 dilation 1x1 groups 1' is"
        )

    def pair(first: int) -> tuple[int, int]:
        return int(found[first]), int(found[first + 1])

    return Patches(pair(1), pair(3), found[7] or pair(5), pair(8), int(found[10]))


class _File(Entry):
    about: str = Field(_ABOUT, alias="//")
    schema_: Literal[1] = Field(1, alias="schema")
    models: dict[str, LockedModel]


@dataclass
class Lock:
    """One file, as it was read; `models` may be changed before it is written."""

    path: Path
    models: dict[str, LockedModel] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Lock:
        """The file in a folder of TOML; without one, a lock without models.

        Raises:
            LockError: if it is damaged, or of another version.
        """
        path = folder / FILE
        try:
            text = path.read_text("utf-8")
            return cls(path, dict(_File.model_validate(json.loads(text)).models))
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError) as error:
            why: object = error
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise LockError(
                f"{path} cannot be used: {why}; remove it, and run `bitgate lock`"
            ) from None

    def text(self) -> str:
        """By name, so that a model more is lines more and nothing else."""
        models = {
            name: locked.model_dump(exclude_defaults=True)
            for name, locked in sorted(self.models.items())
        }
        content = {"//": _ABOUT, "schema": 1, "models": models}
        return json.dumps(content, indent=1) + "\n"

    def current(self, model: Model) -> LockedModel | None:
        """What it says of a model, if that is still what the catalog means, and all that is asked
        now."""
        locked = self.models.get(model.name)
        if locked is None or locked.source != declared(model):
            return None
        return locked if all("patches" in one for one in locked.convolutions) else None


@dataclass
class Locks:
    """A project's own lock, then that of the models that come with Bitgate."""

    locks: tuple[Lock, ...]
    _found: dict[str, ModelShapes | None] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Locks:
        """LockError if one of the files is damaged."""
        return cls(tuple(Lock.read(place) for place in (folder, DEFAULTS)))

    def shapes(self, model: Model) -> ModelShapes | None:
        """Those of a model; None if no file has them, or it is about another source.

        Raises:
            LockError: if an entry is damaged.
        """
        if model.name not in self._found:
            self._found[model.name] = self._look(model)
        return self._found[model.name]

    def _look(self, model: Model) -> ModelShapes | None:
        for lock in self.locks:
            if (locked := lock.current(model)) is not None:
                try:
                    return locked.shapes()
                except (ValueError, TypeError) as error:
                    raise LockError(
                        f"{lock.path}: {model.name}: {error}; run `bitgate lock`"
                    ) from None
        return None
