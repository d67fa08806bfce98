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
        records = _records(dataset)
        if dataset.join is not None:  # blank records too: published protocols keep them
            records = [dataset.join.join(records)]
        documents = [record for record in records if record.strip()]
        if not documents:
            raise SourceError("holds no text at all; check `format` and `column` in the catalog")
        return documents


def dataset_label(dataset: Dataset) -> str:
    """How messages name the entry."""
    return f"dataset {dataset.name}"


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
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise SourceError(
                f"{path.name} line {number}: no JSON object with the key {column!r} ({error!r})"
            ) from error
        if not isinstance(text, str):
            raise SourceError(f"{path.name} line {number}: {column!r} is no text")
        yield text
