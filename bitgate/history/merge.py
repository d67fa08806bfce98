"""One run of many: of runners that each measured a part of the matrix and are gone by now.

The merged run is pytest-benchmark's own JSON, with the Parquet files of the parts made one beside
it, so that whatever reads a run reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgate.history.items import BrokenItemsError, merge_items
from bitgate.history.record import SCHEMA


class MergeError(Exception):
    """The runs are no parts of one run; the message says which of them and why."""


@dataclass(frozen=True)
class Shard:
    """A run that measured a part."""

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

    def records(self) -> Iterator[dict[str, Any]]:
        """What Bitgate has recorded in it."""
        for benchmark in self.benchmarks:
            if "bitgate" in benchmark["extra_info"]:
                yield benchmark["extra_info"]["bitgate"]

    def machines(self) -> list[Any]:
        """What measured it: one machine, or many if it was merged itself."""
        merged: list[Any] | None = self.content.get("bitgate", {}).get("machines")
        return merged or [{"run": self.path.name, "machine_info": self.content["machine_info"]}]


def merge(paths: Sequence[Path], output: Path) -> list[str]:
    """Write one run at `output`, whole or not at all. Answers with what a reader should know."""
    given = [path.resolve() for path in paths]
    for number, path in enumerate(given):
        if path in given[:number]:
            raise MergeError(f"{paths[number]} is given twice")
    if output.resolve() in given:
        raise MergeError(f"{output} is to be written and to be read; name another --output")
    shards = [_read(path) for path in paths]
    _check_schemas(shards)
    _check_commits(shards)
    _check_cases(shards)
    warnings = list(_differing_versions(shards))

    scored = [shard for shard in shards if shard.items.is_file()]
    warnings += [
        f"{shard.items} is missing: later runs cannot be compared item by item with the cases of "
        f"{shard.path}"
        for shard in shards
        if shard not in scored
    ]
    items = output.with_suffix(".parquet")
    partial = output.with_name(f"{output.name}.partial")
    try:
        partial.write_text(json.dumps(_merged(shards), indent=4), "utf-8")
        if scored:
            merge_items(items, [shard.items for shard in scored])
        else:
            items.unlink(missing_ok=True)  # of another run that lay here
        partial.replace(output)
    except BrokenItemsError as error:
        raise MergeError(str(error)) from None
    except OSError as error:
        raise MergeError(f"{output} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return warnings


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
        "datetime": max(str(shard.content["datetime"]) for shard in shards),
    }
    told = [shard.content.get("bitgate", {}) for shard in shards]
    if any(told):
        merged["bitgate"] = {
            "failed": {name: why for part in told for name, why in part.get("failed", {}).items()},
            "unfinished": sum(part.get("unfinished", 0) for part in told),
        }
    machines = [machine for shard in shards for machine in shard.machines()]
    if any(machine["machine_info"] != first["machine_info"] for machine in machines):
        merged["bitgate"] = {**merged.get("bitgate", {}), "machines": machines}
    return merged


def _read(path: Path) -> Shard:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise MergeError(f"{path} is no whole JSON file: {error}") from None
    shard = Shard(path, content)
    try:
        for key in ("machine_info", "commit_info", "datetime"):
            content[key]
        for benchmark in shard.benchmarks:
            benchmark["fullname"], benchmark["stats"]
        recorded = [(record["schema"], record["case"]) for record in shard.records()]
        shard.machines()
    except (KeyError, TypeError, AttributeError):
        raise MergeError(f"{path} is no run that pytest-benchmark has saved") from None
    if not recorded:
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
