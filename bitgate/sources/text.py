"""Text of the catalog's datasets, as documents: the articles of an encyclopaedia, for example."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bitgate.catalog import Dataset, HubSource, ShapesSource, TrainedSource
from bitgate.sources.cache import once
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.fetch import SingleFile, fetch, fetch_once, identity
from bitgate.sources.hub import fetch_column
from bitgate.sources.progress import track


def load_documents(dataset: Dataset) -> list[str]:
    """The documents; with the dataset's `join`, all records in one."""
    with blaming(dataset_label(dataset)):
        records = _whole(dataset)
        if dataset.join is not None:  # blank records too: published protocols keep them
            records = [dataset.join.join(records)]
        documents = [record for record in records if record.strip()]
        if not documents:
            raise SourceError("holds no text at all; check `format` and `column` in the catalog")
        return documents


def load_pairs(dataset: Dataset, column: str) -> list[tuple[str, str]]:
    """Each record's text, and beside it what the same record has in another column; a record that
    has neither is left out.

    Raises:
        SourceError: if a record has only one of them, or records have no columns.
    """
    with blaming(dataset_label(dataset)):
        if dataset.format not in ("jsonl", "hub") or dataset.join is not None:
            what = dataset.format if dataset.join is None else f"{dataset.format} with `join`"
            raise SourceError(
                f"format: of {what} there is no column {column!r}; give records of format jsonl "
                "or hub, without `join`"
            )
        columns = dataset.column, column
        texts, others = (_whole(dataset.model_copy(update={"column": one})) for one in columns)
        found = []
        for number, pair in enumerate(zip(texts, others, strict=True), 1):
            blank = [not text.strip() for text in pair]
            if any(blank) and not all(blank):
                there = blank.index(False)
                start = " ".join(pair[there].split())[:40]
                raise SourceError(
                    f"record {number}: it has {start!r} in {columns[there]!r}, and nothing in "
                    f"{columns[1 - there]!r}; give both, or remove it"
                )
            if not any(blank):
                found.append(pair)
        return found


def half_character(text: str) -> str | None:
    """Half of a character that UTF-16 writes in two, which no encoding takes, for a message; JSON
    can hold it. None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character, \\u{ord(text[error.start]):04x}, at {error.start}"
    return None


def dataset_label(dataset: Dataset) -> str:
    """How messages name the entry."""
    return f"dataset {dataset.name}"


def _whole(dataset: Dataset) -> list[str]:
    """Its records, in which every character is one."""
    records = _records(dataset)
    for number, record in enumerate(records, 1):
        if (half := half_character(record)) is not None:
            raise SourceError(f"record {number}: {half}; correct or remove it")
    return records


def _records(dataset: Dataset) -> list[str]:
    source, label = dataset.source, dataset_label(dataset)
    if isinstance(source, HubSource):
        return fetch_column(source, dataset.column, label)
    if isinstance(source, ShapesSource | TrainedSource):
        raise SourceError(
            f"source: kind {source.kind!r} is for models; a text has to come from somewhere"
        )
    if dataset.format == "mediawiki":
        return _articles(source, label)
    readers: dict[str, Callable[[Path], list[str]]] = {
        "plain": _read,
        "jsonl": lambda path: list(_column(path, dataset.column)),
    }
    if dataset.format not in readers:
        raise SourceError(f"format: {dataset.format!r} does not go with a source that is a file")
    return readers[dataset.format](fetch_once(source, label))


def _articles(source: SingleFile, label: str) -> list[str]:
    """The articles of a dump, parsed once: the dump itself is not kept."""
    import mwparserfromhell

    from bitgate.sources import mediawiki

    def build(folder: Path) -> None:
        work = folder / ".dump"
        work.mkdir()
        dump = fetch(source, work, label)
        with track(f"{label}: clean the text", unit="articles") as task:
            found = [
                {"title": title, "text": text} for title, text in mediawiki.articles(dump, task)
            ]
        shutil.rmtree(work)
        (folder / "articles.json").write_text(json.dumps(found), "utf-8")

    key = identity(source), mwparserfromhell.__version__, mediawiki.CLEANING
    folder = once("articles", *key, build=build, label=label)
    try:
        found = json.loads((folder / "articles.json").read_text("utf-8"))
        return [article["text"] for article in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"the cache is damaged ({error}): remove {folder}, it is made again"
        ) from error


def _read(path: Path) -> list[str]:
    try:
        return [path.read_text("utf-8")]
    except UnicodeDecodeError as error:
        raise SourceError(f"{path.name} is not UTF-8 text: {error}") from error


def _column(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_read(path)[0].split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[column]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise SourceError(
                f"{path.name} line {number}: no JSON object with the key {column!r} ({error!r})"
            ) from error
        if not isinstance(text, str):
            raise SourceError(f"{path.name} line {number}: {column!r} is no text")
        yield text
