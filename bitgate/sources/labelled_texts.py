"""Formats of labelled texts.

    format        a source                                            options
    scored-tsv    a table without header, tabs between its columns    member, text, score, low, high
    csv           a table with header                                 member, text, label, separator
    jsonl         a JSON object per line                              member, text, label
    hub           a dataset of a model hub                            text, label

A file may lie in an archive (tar or zip), where `member` is the end of its path. HTML's escapes in
texts, such as `&amp;`, are resolved; a text longer than the dataset's `longest` tokens is cut when
it is encoded, never refused. A blank line is no record; a record with an empty text is an error.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bitgate.catalog import (
    HubSource,
    LabelledDataset,
    ShapesSource,
    Source,
    TrainedSource,
    nearest,
)
from bitgate.sources.errors import SourceError
from bitgate.sources.fetch import fetch_once
from bitgate.sources.hub import fetch_records
from bitgate.sources.text import half_character

Texts = tuple[list[str], list[int] | None]

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError)


def scored_tsv(dataset: LabelledDataset, source: Source, label: str) -> Texts:
    """Texts that people scored: a class is where the mean of their scores lies.

    Options: `text` and `score` are columns counted from 0 (2 and 1, as in `id score text`); up to
    `low` (-0.5) is the first class, from `high` (0.5) on the last, between them the middle one.
    """
    options = _options(dataset, member=None, text=2, score=1, low=-0.5, high=0.5)
    text, score, low, high = (options[key] for key in ("text", "score", "low", "high"))
    if len(dataset.classes) != 3:
        raise SourceError(
            "classes: scored-tsv needs three, such as ['negative', 'neutral', 'positive']"
        )
    if not low < high:
        raise SourceError(f"options: low {low} must be below high {high}")
    found, labels = list[str](), list[int]()
    content = _content(source, options["member"], label)
    for number, line in enumerate(io.StringIO(content, newline=None), 1):  # CRLF too
        if not line.strip():
            continue
        # where the text is the last column, a tab may be in it
        parts = line.rstrip("\n").split("\t", text if text > score else -1)
        if len(parts) <= max(text, score):
            raise SourceError(
                f"row {number}: {len(parts)} columns, where text is column {text} and score "
                f"column {score}; the file is damaged, or has other columns than `options` say"
            )
        try:
            value = float(parts[score])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SourceError(f"row {number}: its score {parts[score]!r} is no number")
        found.append(_clean(parts[text], number))
        labels.append(0 if value <= low else 2 if value >= high else 1)
    return found, labels


def jsonl(dataset: LabelledDataset, source: Source, label: str) -> Texts:
    """A JSON object per line; options `text` and `label` name its keys."""
    options = _options(dataset, member=None, text="text", label="label")
    return _records(dataset, options, _objects(_content(source, options["member"], label)))


def table(dataset: LabelledDataset, source: Source, label: str) -> Texts:
    """Comma-separated values with a header; options `text` and `label` name its columns."""
    options = _options(dataset, member=None, text="text", label="label", separator=",")
    content = io.StringIO(_content(source, options["member"], label), newline="")
    try:
        reader = csv.DictReader(content, delimiter=options["separator"], strict=True)
        return _records(dataset, options, _rows(reader))
    except (csv.Error, TypeError) as error:
        raise SourceError(f"is no table of this kind, or is damaged: {error}") from error


def hub(dataset: LabelledDataset, source: Source, label: str) -> Texts:
    """A dataset of a model hub; options `text` and `label` name its columns."""
    options = _options(dataset, text="text", label="label")
    if not isinstance(source, HubSource):
        raise SourceError(f"source: kind {source.kind!r} does not go with format 'hub'")
    names = [options["text"], *([options["label"]] if dataset.classes else [])]
    records = fetch_records(source, names, label)
    columns = [list(records[name]) for name in names]
    rows = enumerate((dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)), 1)
    return _records(dataset, options, rows)


FORMATS: dict[str, Callable[..., tuple[Any, Sequence[int] | None]]] = {
    "scored-tsv": scored_tsv,
    "jsonl": jsonl,
    "csv": table,
    "hub": hub,
}


# --- records -------------------------------------------------------------------------------


def _options(dataset: LabelledDataset, **known: Any) -> dict[str, Any]:
    """The dataset's options, with the format's defaults, whose types they must have."""
    if dataset.of != "texts":
        raise SourceError(f"of: format {dataset.format!r} holds texts, not {dataset.of}")
    for key, value in dataset.options.items():
        if key not in known:
            raise SourceError(f"options: {key}: unknown key; {nearest(key, known)}")
        wanted = str if known[key] is None else type(known[key])
        if wanted is float and type(value) is int:
            continue
        if type(value) is not wanted:
            raise SourceError(f"options: {key}: expected {wanted.__name__}, got {value!r}")
        if isinstance(value, int) and wanted is int and value < 0:
            raise SourceError(f"options: {key}: columns are counted from 0, got {value}")
    return {**known, **dataset.options}


def _records(
    dataset: LabelledDataset,
    options: Mapping[str, Any],
    rows: Iterator[tuple[int, Mapping[str, Any]]],
) -> Texts:
    found, labels = list[str](), list[int]()
    for number, row in rows:
        found.append(_clean(_value(row, options["text"], number), number))
        if dataset.classes:
            given = _value(row, options["label"], number)
            labels.append(_class(given, dataset.classes, number))
    return found, labels if dataset.classes else None


def _rows(reader: csv.DictReader[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    names = reader.fieldnames or []
    for name in names:
        if name and names.count(name) > 1:  # some tables end in columns without a name
            raise SourceError(f"row 1: the header names {name!r} more than once; rename one")
    for row in reader:
        if None in row:  # what the reader calls the rest, as of a text with a comma
            raise SourceError(
                f"row {reader.line_num}: more columns than the header's {len(names)}; quote the "
                "text"
            )
        yield reader.line_num, row


def _value(row: Mapping[str, Any], key: str, number: int) -> Any:
    if row.get(key) is None:
        there = ", ".join(row)
        raise SourceError(
            f"row {number}: nothing in {key!r}; it has {there or 'nothing'}. `options` name the "
            "columns of text and label"
        )
    return row[key]


def _clean(text: Any, number: int) -> str:
    if not isinstance(text, str):
        raise SourceError(f"row {number}: its text is no text but {text!r}")
    cleaned = html.unescape(text).strip()
    if not cleaned:
        raise SourceError(f"row {number}: its text is empty; remove the row")
    if (half := half_character(cleaned)) is not None:
        raise SourceError(f"row {number}: its text has {half}; correct or remove the row")
    return cleaned


def _class(given: Any, classes: tuple[str, ...], number: int) -> int:
    """A class by its name, or by its number from 0; text and integer mean the same."""
    said = str(given).strip() if type(given) in (str, int) else ""
    meant = {classes.index(said)} if said in classes else set()
    digits = said.lstrip("0") or said[-1:]  # int() refuses thousands of them
    if digits.isdecimal() and len(digits) <= len(str(len(classes))) and int(digits) < len(classes):
        meant.add(int(digits))
    if len(meant) == 1:
        return meant.pop()
    if meant:
        raise SourceError(
            f"row {number}: label {given!r} is the name of one of the `classes` "
            f"{', '.join(classes)} and the number of another; name or order them so that they agree"
        )
    raise SourceError(
        f"row {number}: label {given!r:.80} is none of the `classes` {', '.join(classes)}, nor a "
        f"number from 0 to {len(classes) - 1}"
    )


def _objects(content: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):  # JSON may hold other line ends
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # of what is too long, or too deep, as well
            raise SourceError(f"row {number}: no JSON, the file may be damaged: {error}") from error
        if not isinstance(row, dict):
            raise SourceError(f"row {number}: expected a JSON object, got {line[:40]!r}")
        yield number, row


# --- files ---------------------------------------------------------------------------------


def _content(source: Source, member: str | None, label: str) -> str:
    """The text of a source that is a file, or of one member of an archive."""
    if isinstance(source, HubSource | ShapesSource | TrainedSource):
        raise SourceError(f"source: kind {source.kind!r} does not go with a format of files")
    path = fetch_once(source, label)
    try:
        data = path.read_bytes() if member is None else _member(path, member)
    except _DAMAGED as error:
        raise SourceError(f"{path.name} is truncated or damaged: {error}") from error
    name = path.name if member is None else member
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "; if it is an archive, name its file in options.member" if member is None else ""
        raise SourceError(f"{name} is not UTF-8 text: {error}{hint}") from error


def _member(path: Path, name: str) -> bytes:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.read(_find(name, archive.namelist(), path))
    if not tarfile.is_tarfile(path):
        raise SourceError(f"{path.name} is no archive, or damaged: it cannot have member {name!r}")
    with tarfile.open(path) as archive:
        files = [one.name for one in archive if one.isfile()]
        stream = archive.extractfile(_find(name, files, path))
        assert stream is not None, "extractfile returns None only for what is no file"
        with stream:
            return stream.read()


def _find(name: str, members: Sequence[str], path: Path) -> str:
    found = [one for one in members if one == name or one.endswith(f"/{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(f"{path.name} has several {name!r}: {', '.join(found)}; give more of it")
    near = get_close_matches(name, members, n=3, cutoff=0.3)
    raise SourceError(
        f"{path.name} has no member {name!r}; the nearest are {', '.join(near) or 'none'}"
    )
