"""Labelled items of the catalog: texts or images, and the class that each belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from bitgate.catalog import LabelledDataset, nearest
from bitgate.sources.errors import SourceError, blaming

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
    """The items of one part; no item is in two of them, nor is an equal one.

    Raises:
        SourceError: if the source cannot be read, has a label outside of the classes, or too few
            items.
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
        drawn = _drawn(dataset, records)
        if elsewhere:  # never what is evaluated, even where two sources share items
            evaluated = load_items(dataset)
            seen = {_key(one) for one in evaluated.inputs}
            drawn = [number for number in drawn if _key(records.inputs[number]) not in seen]
        chosen = _part(dataset, drawn, part, elsewhere)
        return _items(dataset, records, chosen)


def shared_item(lessons: LabelledItems, exam: LabelledItems) -> str | None:
    """An item that is in both, for a message; None if there is none. Labels do not count."""
    learned = {_key(one) for one in lessons.inputs}
    for number, one in zip(exam.numbers, exam.inputs, strict=True):
        if _key(one) in learned:
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


def _drawn(dataset: LabelledDataset, records: Records) -> list[int]:
    """Different items in an order of hashes, which is the same on every machine."""
    first: dict[bytes, int] = {}
    for number, one in enumerate(records.inputs):
        first.setdefault(_key(one), number)
    seed = f"{dataset.seed}/".encode()
    ordered = sorted(first.items(), key=lambda found: hashlib.sha256(seed + found[0]).digest())
    return [number for _, number in ordered]


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
        """Of what the model sees."""
        return f"{self.items.fingerprint}/{self.longest}"

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
