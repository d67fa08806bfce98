"""Items of Bitgate's own tasks, made of a dataset's documents.

All that can be made are drawn in an order of hashes, the same on every machine and for every model;
at most one of a paragraph. An item whose text a quantized model has seen is left out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitgate.catalog import Dataset, TaskWorkload
from bitgate.sources.cache import once
from bitgate.sources.errors import SourceError
from bitgate.sources.overlap import shares_words, word_runs
from bitgate.sources.text import load_documents

AREA = "task-items"
FORMAT = 1  #: another one makes other items
FILE = "items.jsonl"
ENDING = 6  #: words of an ending
CHOICES = 4
BEFORE = range(8, 21)  #: words of the sentence before the one that is to be ended
ENDED = range(12, 23)  #: and of that one
SENTENCES = 4  #: of a passage whose last word is asked, at most
PASSAGE = range(20, 81)  #: its words
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_LAST_WORD = re.compile(r"(.*\S) ([A-Za-z]{4,})\.")

Item = dict[str, Any]


class _Candidate(NamedTuple):
    document: int
    paragraph: int
    context: str
    answer: str


def sentences(text: str) -> list[str]:
    """The sentences of a text without line breaks, by full stops before capitals."""
    return _SENTENCE.split(text)


def cloze(documents: Sequence[str], seed: int) -> Iterator[Item]:
    """Two sentences without the last six words, and four endings: of three other sentences of the
    document, and the right one, at `gold`."""
    endings = [_endings(document) for document in documents]
    for item in _drawn(_sentence_pairs(documents), seed):
        others = [
            ending
            for ending in endings[item.document]
            if ending != item.answer and ending not in item.context
        ]
        if len(others) < CHOICES - 1:
            continue
        name = _digest(item.context, item.answer)
        wrong = sorted(others, key=lambda ending: _digest(name, ending))[: CHOICES - 1]
        choices = sorted((item.answer, *wrong), key=lambda ending: _digest(ending, name))
        yield {
            "id": name[:16],
            "document": item.document,
            "context": item.context,
            "choices": choices,
            "gold": choices.index(item.answer),
        }


def last_word(documents: Sequence[str], seed: int) -> Iterator[Item]:
    """A passage of up to four sentences without its last word, which occurs in it before."""
    for item in _drawn(_passages(documents), seed):
        yield {
            "id": _digest(item.context, item.answer)[:16],
            "document": item.document,
            "context": item.context,
            "word": item.answer,
        }


#: how the items of each task are made
MAKERS: dict[str, Callable[[Sequence[str], int], Iterator[Item]]] = {
    "bitgate_cloze": cloze,
    "bitgate_lastword": last_word,
}


def write_items(workload: TaskWorkload, dataset: Dataset, seen: Sequence[str]) -> Path:
    """A file with the items of the workload's own task, one JSON object a line, made once.

    No item shares a run of words with the texts `seen`.

    Raises:
        SourceError: if fewer can be made than are asked for.
    """
    documents = load_documents(dataset)
    count = workload.limit
    runs = word_runs(seen)

    def build(folder: Path) -> None:
        made = MAKERS[workload.task](documents, workload.seed)
        unseen = (item for item in made if not any(shares_words(t, runs) for t in texts(item)))
        chosen = list(itertools.islice(unseen, count))
        if len(chosen) < count:
            raise SourceError(
                f"too few: {len(chosen)} items of {workload.task} can be made of dataset "
                f"{dataset.name}, {count} are asked for; lower `items` or `items_limit`, or choose "
                "a longer text"
            )
        lines = (json.dumps(item) for item in chosen)
        (folder / FILE).write_text("\n".join(lines) + "\n", "utf-8")

    key = (workload.task, FORMAT, workload.seed, count)
    of_texts = (_digest(*documents), _digest(*sorted(map(" ".join, runs))))
    label = f"task {workload.name}"
    return once(AREA, *key, *of_texts, build=build, label=label) / FILE


def texts(item: Item) -> list[str]:
    """All that an item lets a model read."""
    answers = item["choices"] if "choices" in item else [item["word"]]
    return [f"{item['context']} {answer}" for answer in answers]


def _sentence_pairs(documents: Sequence[str]) -> Iterator[_Candidate]:
    for document, text in enumerate(documents):
        for paragraph, part in enumerate(text.split("\n\n")):
            for before, ended in itertools.pairwise(sentences(part)):
                if _is_plain(before, BEFORE) and _is_plain(ended, ENDED):
                    words = ended.split()
                    context = " ".join((before, *words[:-ENDING]))
                    yield _Candidate(document, paragraph, context, " ".join(words[-ENDING:]))


def _endings(document: str) -> list[str]:
    found = {
        " ".join(sentence.split()[-ENDING:])
        for part in document.split("\n\n")
        for sentence in sentences(part)
        if _is_plain(sentence, ENDED)
    }
    return sorted(found)


def _passages(documents: Sequence[str]) -> Iterator[_Candidate]:
    for document, text in enumerate(documents):
        for paragraph, part in enumerate(text.split("\n\n")):
            found = sentences(part)
            for end in range(2, len(found) + 1):
                passage = " ".join(found[max(0, end - SENTENCES) : end])
                match = _LAST_WORD.fullmatch(passage) if _is_plain(passage, PASSAGE) else None
                if match is not None and re.search(rf"\b{match[2]}\b", match[1]):
                    yield _Candidate(document, paragraph, match[1], match[2])


def _is_plain(text: str, words: range) -> bool:
    """Of that many words, closed by a full stop, and written with what every tokenizer knows."""
    return len(text.split()) in words and text.isascii() and text.endswith(".")


def _drawn(candidates: Iterator[_Candidate], seed: int) -> Iterator[_Candidate]:
    taken = set()
    for item in sorted(candidates, key=lambda c: _digest(str(seed), c.context, c.answer)):
        if (item.document, item.paragraph) not in taken:
            taken.add((item.document, item.paragraph))
            yield item


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
