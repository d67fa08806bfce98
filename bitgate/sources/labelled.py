"""Labelled items of the catalog: texts or images, and the class that each belongs to."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from bitgate.catalog import LabelledDataset, nearest
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.tokenizer import made_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Part = Literal["evaluated", "training", "validation"]


class Records(NamedTuple):
    """All that a source has, in its order."""

    #: texts, or images float32 [n, channels, height, width], as the model takes them
    inputs: Sequence[str] | Tensor
    labels: Sequence[int] | None  #: positions in the dataset's `classes`


def formats() -> dict[str, Callable[..., tuple[object, Sequence[int] | None]]]:
    """How a source is read, by the name that `format` gives it; a new format is a function and its
    line in one of these. Imported when items are loaded: collection needs none of it."""
    from bitgate.sources import labelled_images, labelled_texts

    return {**labelled_texts.FORMATS, **labelled_images.FORMATS}


@dataclass(frozen=True)
class LabelledItems:
    """Items in the order in which they are drawn."""

    inputs: Sequence[str] | Tensor  #: texts, or images float32 [n, channels, height, width]
    labels: tuple[int, ...] | None  #: positions in `classes`; None where there are none
    numbers: tuple[int, ...]  #: where each stands in its source
    classes: tuple[str, ...]
    fingerprint: str  #: a hash of inputs and labels

    def __len__(self) -> int:
        return len(self.numbers)


def load_items(dataset: LabelledDataset, part: Part = "evaluated") -> LabelledItems:
    """The items of one part; no item is in two of them, nor is one that counts as the same: an
    equal image, a text of the same letters and digits in any case.

    Raises:
        SourceError: if the source cannot be read, has a label outside of the classes, a text that
            is not Unicode, or too few items.
    """
    label = f"labelled {dataset.name}"
    with blaming(label):
        known = formats()
        read = known.get(dataset.format)
        if read is None:
            raise SourceError(
                f"format: nothing is called {dataset.format!r}; {nearest(dataset.format, known)}"
            )
        elsewhere = dataset.training is not None and part != "evaluated"
        source = dataset.training if elsewhere and dataset.training else dataset.source
        records = Records(*read(dataset, source, label))
        _refuse_labels(dataset, records)
        _refuse_half_characters(records)
        drawn = _drawn(dataset, records)
        if elsewhere:  # never what is evaluated, even where two sources share items
            seen = {_form(one) for one in load_items(dataset).inputs}
            drawn = [number for number in drawn if _form(records.inputs[number]) not in seen]
        chosen = _part(dataset, drawn, part, elsewhere)
        return _items(dataset, records, chosen)


def shared_item(lessons: LabelledItems, exam: LabelledItems) -> str | None:
    """An item of `exam` that counts as the same as one of `lessons`, for a message; None if there
    is none. Labels do not count."""
    learned = {_form(one) for one in lessons.inputs}
    for number, one in zip(exam.numbers, exam.inputs, strict=True):
        if _form(one) in learned:
            return repr(one) if isinstance(one, str) else f"number {number}"
    return None


def _part(
    dataset: LabelledDataset, drawn: Sequence[int], part: Part, elsewhere: bool
) -> Sequence[int]:
    counts = {
        "evaluated": 0 if elsewhere else dataset.limit,
        "training": dataset.train_items,
        "validation": dataset.validation_items,
    }
    at = 0
    for name, count in counts.items():
        if name == part:
            if at + count > len(drawn):
                asked = f"{at + count} are asked for" if at else f"{count} are"
                raise SourceError(
                    f"too few: {len(drawn)} different items, {asked}; lower `items`, "
                    "`train_items` or `validation_items`"
                )
            return drawn[at : at + count]
        at += count
    raise ValueError(part)


def _refuse_labels(dataset: LabelledDataset, records: Records) -> None:
    if not len(records.inputs):
        raise SourceError("holds no items at all; check `format` and `options`")
    if (records.labels is None) != (not dataset.classes):
        has = "has no labels" if records.labels is None else "has labels"
        raise SourceError(f"classes: its source {has}; {'leave' if has else 'name'} `classes`")
    if records.labels is None:
        return
    for number, found in enumerate(records.labels):
        if not 0 <= found < len(dataset.classes):
            raise SourceError(
                f"item {number}: label {found} is outside of the {len(dataset.classes)} `classes`"
            )


def _refuse_half_characters(records: Records) -> None:
    """JSON can spell half of a character that takes two code units, which nothing can hash or
    tokenize; whatever format it comes from, it is refused here."""
    for number, one in enumerate(records.inputs):
        if isinstance(one, str) and re.search("[\ud800-\udfff]", one):
            raise SourceError(
                f"item {number}: its text is not Unicode, it has half of a character (a lone "
                f"surrogate): {one!a:.200}; mend the text"
            )


def _drawn(dataset: LabelledDataset, records: Records) -> list[int]:
    """Different items in an order of hashes of their contents: the same on every machine, whatever
    the order of the file.

    Of items that count as the same the first in this order is drawn, with its own label, even where
    the others' differ; of equal ones with several labels, the one whose label comes first by hash.
    """
    seed = f"{dataset.seed}/".encode()
    places = []
    for number, one in enumerate(records.inputs):
        content = seed + _key(one)
        label = "" if records.labels is None else str(records.labels[number])
        places.append([hashlib.sha256(content + end).digest() for end in (b"", label.encode())])
    first: dict[str | bytes, int] = {}
    for number in sorted(range(len(places)), key=places.__getitem__):
        first.setdefault(_form(records.inputs[number]), number)
    return list(first.values())


def _form(one: str | Tensor) -> str | bytes:
    """What items share that count as the same. Texts: letters, digits and underscores, whatever
    their case and what stands between them, as a model would know by heart `Anger is UGLY.` once it
    has learned `Anger is ugly!!!`; the text itself where there are none. Images: every value."""
    if not isinstance(one, str):
        return _key(one)
    return re.sub(r"\W+", "", unicodedata.normalize("NFKC", one).casefold()) or one


def _key(one: str | Tensor) -> bytes:
    content = one.encode() if isinstance(one, str) else one.numpy().astype("<f4").tobytes()
    return hashlib.sha256(content).digest()


def _items(dataset: LabelledDataset, records: Records, chosen: Sequence[int]) -> LabelledItems:
    digest = hashlib.sha256()
    for number in chosen:
        digest.update(_key(records.inputs[number]))
        digest.update(str(None if records.labels is None else records.labels[number]).encode())
    inputs: Sequence[str] | Tensor
    if isinstance(records.inputs, (list, tuple)):
        inputs = [records.inputs[number] for number in chosen]
    else:
        inputs = records.inputs[list(chosen)]  # type: ignore[call-overload]
    labels = None if records.labels is None else tuple(records.labels[n] for n in chosen)
    return LabelledItems(inputs, labels, tuple(chosen), dataset.classes, digest.hexdigest())


class EncodedItems:
    """Items as a model takes them, some at a time."""

    def __init__(
        self,
        items: LabelledItems,
        tokenizer: PreTrainedTokenizerBase | None,
        longest: int,
    ) -> None:
        """`tokenizer` reads texts, of which `longest` tokens are kept."""
        self.items = items
        self.tokenizer = tokenizer
        self.longest = longest

    def __len__(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """Of what the model sees: items, and for texts how they are tokenized."""
        known = f"{self.items.fingerprint}/{self.longest}"
        if self.tokenizer is None:
            return known
        return f"{known}/{made_of(self.tokenizer)}/{self.tokenizer.pad_token_id}"

    def inputs(self, start: int, stop: int) -> dict[str, Tensor]:
        """What the model is called with: `input_ids` and `attention_mask` int64 [n, length], padded
        at the end to the longest of them, or `pixel_values` [n, channels, height, width]."""
        some = self.items.inputs[start:stop]
        if not isinstance(some, (list, tuple)):
            return {"pixel_values": some}
        assert self.tokenizer is not None
        if self.tokenizer.pad_token is None and len(some) > 1:
            raise SourceError(
                "tokenizer: it has no padding token, so texts cannot be read together; add "
                "`pad_token` to its tokenizer_config.json, or give batch = 1"
            )
        encoded = self.tokenizer(
            list(some),
            padding=len(some) > 1,
            padding_side="right",
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}
