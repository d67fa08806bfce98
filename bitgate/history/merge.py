"""One run of many: of runners that each measured a part of the matrix and are gone by now.

The merged run is pytest-benchmark's own JSON, with the Parquet files of the parts made one beside
it, so that whatever reads a run reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from bitgate.history.items import BrokenItemsError, merge_items
from bitgate.history.record import SCHEMA
from bitgate.history.saved import names, utc
from bitgate.history.schema import Absent


class MergeError(Exception):
    """The runs are no parts of one run; the message says which of them and why."""


class _Recorded(BaseModel):
    """What must be in a record of Bitgate."""

    schema_: int | str | None = Field(alias="schema")  # another than ours is refused by name
    case: str
    commit: str | None = None
    versions: dict[str, str] = {}


class _Extra(BaseModel):
    bitgate: _Recorded | None = None


class _Benchmark(BaseModel):
    fullname: str
    stats: dict[str, Any]
    extra_info: _Extra


class _Machine(BaseModel):
    run: str
    machine_info: dict[str, Any]


class _Told(BaseModel):
    failed: dict[str, str] = {}
    unfinished: Annotated[int, Field(strict=True, ge=0)] = 0
    absent: list[Absent] = []
    machines: list[_Machine] = []
    due: list[str] = []
    matrix: str | None = None
    gates: str | None = None
    changes: str | None = None


def _time(text: str) -> str:
    utc(text)
    return text


class _Stored(BaseModel):
    """What must be in a run to be merged; all else comes along as it is."""

    machine_info: dict[str, Any]
    commit_info: dict[str, Any]
    datetime: Annotated[str, AfterValidator(_time)]
    benchmarks: list[_Benchmark]
    bitgate: _Told = _Told()


@dataclass(frozen=True)
class Shard:
    """A run that measured a part; `content` is valid as `_Stored`."""

    path: Path
    content: dict[str, Any]

    @property
    def benchmarks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.content["benchmarks"]
        return found

    @property
    def items(self) -> Path:
        """The per-item scores of its cases."""
        return self.path.with_suffix(".parquet")

    @property
    def told(self) -> dict[str, Any]:
        """What Bitgate says of the whole run."""
        found: dict[str, Any] = self.content.get("bitgate", {})
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """What Bitgate has recorded in it."""
        for benchmark in self.benchmarks:
            if benchmark["extra_info"].get("bitgate") is not None:
                yield benchmark["extra_info"]["bitgate"]

    def machines(self) -> list[Any]:
        """What measured it: one machine, or many if it was merged itself."""
        merged: list[Any] | None = self.told.get("machines")
        return merged or [{"run": self.path.name, "machine_info": self.content["machine_info"]}]


#: what is the same in all parts of a run, and what a difference means
SHARED = {
    "matrix": "other cases are due, or defined otherwise (another --cadence or matrix)",
    "gates": "the gates are others",
    "changes": "the uncommitted changes are others",
}


def merge(paths: Sequence[Path], output: Path, *, partial: bool = False) -> list[str]:
    """Write one run at `output`, whole or not at all. Answers with what a reader should know.

    Cases that were due and are in no run are an error, unless the result may be `partial`.
    """
    _check_paths(paths, output)
    shards = [_read(path) for path in paths]
    _check_schemas(shards)
    _check_commits(shards)
    _check_shared(shards)
    _check_cases(shards)
    warnings = list(_differing_versions(shards))
    if lacking := _lacking(shards):
        text = f"{len(lacking)} cases were due and are in no part: {names(lacking)}"
        if not partial:
            raise MergeError(f"{text}; merge the parts that have them too, or give --partial")
        warnings.append(text)

    scored = [shard for shard in shards if shard.items.is_file()]
    warnings += [
        f"{shard.items} is missing: later runs cannot be compared item by item with the cases of "
        f"{shard.path}"
        for shard in shards
        if shard not in scored
    ]
    items = output.with_suffix(".parquet")
    unfinished = output.with_name(f"{output.name}.partial")
    try:
        unfinished.write_text(json.dumps(_merged(shards), indent=4), "utf-8")
        if scored:
            merge_items(items, [shard.items for shard in scored])
        else:
            items.unlink(missing_ok=True)  # of another run that lay here
        unfinished.replace(output)
    except BrokenItemsError as error:
        raise MergeError(str(error)) from None
    except OSError as error:
        raise MergeError(f"{output} cannot be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return warnings


def _check_paths(paths: Sequence[Path], output: Path) -> None:
    """Before anything is read or written."""
    given = [path.resolve() for path in paths]
    for number, path in enumerate(given):
        if path in given[:number]:
            raise MergeError(f"{paths[number]} is given twice")
    if output.suffix != ".json":
        raise MergeError(
            f"{output} does not end in .json, as the scores go to a .parquet of that name beside it"
        )
    read = [name for path in paths for name in (path, path.with_suffix(".parquet"))]
    for written in (output, output.with_suffix(".parquet")):
        for path in read:
            if _same_file(written, path):
                raise MergeError(
                    f"{written} is to be written, and {path} to be read, which is the same file; "
                    "name another --output"
                )


def _same_file(one: Path, other: Path) -> bool:
    """Also by another name, as links or a file system that ignores case may give it."""
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return one.resolve() == other.resolve()


def _merged(shards: Sequence[Shard]) -> dict[str, Any]:
    """Tests in the order of their names: the same whoever measured which of them."""
    first = shards[0].content
    merged = {
        **{key: value for key, value in first.items() if key != "bitgate"},
        "benchmarks": sorted(
            (benchmark for shard in shards for benchmark in shard.benchmarks),
            key=lambda benchmark: str(benchmark["fullname"]),
        ),
        # when the last of it was there
        "datetime": max((str(shard.content["datetime"]) for shard in shards), key=utc),
    }
    told = [shard.told for shard in shards]
    if any(told):
        merged["bitgate"] = {
            "failed": {name: why for part in told for name, why in part.get("failed", {}).items()},
            "unfinished": sum(part.get("unfinished", 0) for part in told),
        }
        for key in SHARED:
            if known := [part[key] for part in told if key in part]:
                merged["bitgate"][key] = known[0]
        if due := _due(shards):
            merged["bitgate"]["due"] = due
        if absent := _absent(shards):
            merged["bitgate"]["absent"] = absent
    machines = [machine for shard in shards for machine in shard.machines()]
    if any(machine["machine_info"] != first["machine_info"] for machine in machines):
        merged["bitgate"] = {**merged.get("bitgate", {}), "machines": machines}
    return merged


def _due(shards: Sequence[Shard]) -> list[str]:
    """Every case that was due, whichever of them a part was to measure."""
    return list(dict.fromkeys(case for shard in shards for case in shard.told.get("due", [])))


def _lacking(shards: Sequence[Shard]) -> list[str]:
    """What was due and no part says anything of: neither that it was measured nor why not."""
    found = {record["case"] for shard in shards for record in shard.records()}
    for shard in shards:
        found |= {one["case"] for one in shard.told.get("absent", [])}
        found |= shard.told.get("failed", {}).keys()
    return [case for case in _due(shards) if case not in found]


def _absent(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """What no shard has measured; of several reasons the first."""
    measured = {record["case"] for shard in shards for record in shard.records()}
    found: dict[str, dict[str, Any]] = {}
    for shard in shards:
        for absent in shard.told.get("absent", []):
            if absent["case"] not in measured:
                found.setdefault(absent["case"], absent)
    return list(found.values())


def _read(path: Path) -> Shard:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MergeError(f"{path} is no whole JSON file: {error}") from None
    try:
        _Stored.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise MergeError(
            f"{path} is no run that pytest-benchmark has saved: {where}: {first['msg']}"
        ) from None
    shard = Shard(path, content)
    if next(shard.records(), None) is None:
        raise MergeError(f"{path} holds no records of Bitgate: was it made by its benchmarks?")
    return shard


def _check_schemas(shards: Sequence[Shard]) -> None:
    for shard in shards:
        for record in shard.records():
            if record["schema"] != SCHEMA:
                raise MergeError(
                    f"{shard.path}: {record['case']} is recorded in schema {record['schema']}; "
                    f"this version of Bitgate merges schema {SCHEMA}"
                )


def _check_commits(shards: Sequence[Shard]) -> None:
    """All must have measured the same; pytest-benchmark and Bitgate both say what."""
    first: tuple[Any, Shard] | None = None
    for shard in shards:
        for record in shard.records():
            commit = record.get("commit") or shard.content["commit_info"].get("id")
            if first is None:
                first = commit, shard
            elif commit != first[0]:
                raise MergeError(
                    f"{first[1].path} was measured at commit {first[0]}, {shard.path} at {commit}"
                )


def _check_shared(shards: Sequence[Shard]) -> None:
    """All must be parts of the same run; runs before this was saved do not say."""
    for key, meaning in SHARED.items():
        known = [shard for shard in shards if key in shard.told]
        for shard in known[1:]:
            if shard.told[key] != known[0].told[key]:
                raise MergeError(
                    f"{known[0].path} and {shard.path} are no parts of one run: {meaning}"
                )


def _check_cases(shards: Sequence[Shard]) -> None:
    seen: dict[str, Shard] = {}
    for shard in shards:
        for benchmark in shard.benchmarks:
            record = benchmark["extra_info"].get("bitgate")
            name = record["case"] if record else benchmark["fullname"]
            if name in seen:
                raise MergeError(f"{name} is in both {seen[name].path} and {shard.path}")
            seen[name] = shard


def _differing_versions(shards: Sequence[Shard]) -> Iterator[str]:
    first, before = shards[0], _versions(shards[0])
    for shard in shards[1:]:
        found = _versions(shard)
        for package in sorted({*before, *found}):
            if found.get(package) != before.get(package):
                yield (
                    f"{package} differs: {before.get(package, 'none')} in {first.path}, "
                    f"{found.get(package, 'none')} in {shard.path}"
                )


def _versions(shard: Shard) -> dict[str, str]:
    return {
        package: found
        for record in shard.records()
        for package, found in record.get("versions", {}).items()
    }
