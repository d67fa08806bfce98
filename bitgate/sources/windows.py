"""The windows of tokens that a text is scored in, as its dataset's protocol says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bitgate.catalog import Dataset
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.text import dataset_label
from bitgate.sources.tokens import encode
from bitgate.statistics import LEAST_SKEWED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Windows:
    """Windows in the order in which they are drawn; each lies within one document."""

    tokens: Tensor  #: int64 [windows, window], one column more with BOS in front
    scored: Tensor  #: int64 [windows]: the first position of each window whose token is scored
    document: Tensor  #: int64 [windows]: which document each window comes from
    fingerprint: str  #: a hash of the tokens and of what is scored

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def scored_tokens(self) -> int:
        """How many tokens are scored in all windows together."""
        return int((self.tokens.shape[1] - self.scored).sum())


class TooShortError(SourceError):
    """A text that has not what its protocol asks for; `found` says that alone, without the remedy
    of who has a catalog."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"{found}. Lower `tokens` or `window`, set `join`, or choose a longer text"
        )
        self.found = found


class Span(NamedTuple):
    """Where a window lies."""

    document: int
    start: int


#: a document and the tokens of it that another dataset has
Taken = tuple[int, range]


def windows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]
) -> Windows:
    """As many windows as scoring `tokens_limit` tokens takes, by default twice `tokens`."""
    label = dataset_label(dataset)
    with blaming(label):
        encoded = encode(tokenizer, documents, label)
        lengths = [len(text) for text in encoded]
        taken = [
            (span.document, range(span.start, span.start + other.window))
            for other in dataset.avoid
            for span in _chosen(other, lengths, _bos(other, tokenizer) is not None, ())
        ]
        return cut(dataset, encoded, _bos(dataset, tokenizer), taken)


def refuse_too_few(text: Windows, dataset: Dataset) -> None:
    """Nothing is scored of which no interval could be had.

    Raises:
        TooShortError: for fewer windows than `skewed_t` takes.
    """
    if len(text) < LEAST_SKEWED:
        with blaming(dataset_label(dataset)):
            raise TooShortError(
                f"too short: it has {len(text)} windows of {dataset.window} tokens, and an "
                f"interval takes at least {LEAST_SKEWED}"
            )


def cut(
    dataset: Dataset,
    texts: Sequence[Sequence[int]],
    bos: int | None,
    taken: Sequence[Taken] = (),
) -> Windows:
    """The windows of documents that are tokens already; `bos` goes in front of each window, and
    none touches a part of a document that is `taken`."""
    import torch

    front = [] if bos is None else [bos]
    chosen = _chosen(dataset, [len(text) for text in texts], bool(front), taken)
    first_scored = [_first_scored(dataset, span, len(front)) for span in chosen]
    total = len(chosen) * (len(front) + dataset.window) - sum(first_scored)
    if total < dataset.tokens:
        raise TooShortError(_too_short(dataset, texts, total))
    tokens = torch.tensor(
        [[*front, *texts[span.document][span.start :][: dataset.window]] for span in chosen]
    )
    return Windows(
        tokens=tokens,
        scored=torch.tensor(first_scored),
        document=torch.tensor([span.document for span in chosen]),
        fingerprint=_fingerprint(tokens, first_scored),
    )


def _chosen(
    dataset: Dataset, lengths: Sequence[int], bos: bool, taken: Sequence[Taken]
) -> list[Span]:
    """As many windows, in the order drawn, as scoring `tokens_limit` tokens takes."""
    chosen: list[Span] = []
    total = 0
    for span in _drawn(dataset, lengths):
        if total >= dataset.limit:
            break
        if not any(_touches(span, dataset.window, other) for other in taken):
            chosen.append(span)
            total += bos + dataset.window - _first_scored(dataset, span, int(bos))
    return chosen


def _touches(span: Span, window: int, taken: Taken) -> bool:
    document, part = taken
    return span.document == document and span.start < part.stop and part.start < span.start + window


def _drawn(dataset: Dataset, lengths: Sequence[int]) -> list[Span]:
    """All whole windows in random order, so that the first ones sample many documents.

    The order is one of hashes: the same on every machine and version, and adding a document
    leaves the other windows in theirs.
    """
    stride = dataset.stride or dataset.window
    spans = [
        Span(document, start)
        for document, length in enumerate(lengths)
        for start in range(0, length - dataset.window + 1, stride)
    ]
    return sorted(
        spans, key=lambda span: hashlib.sha256(f"{dataset.seed}/{span}".encode()).digest()
    )


def _first_scored(dataset: Dataset, span: Span, front: int) -> int:
    """No token is scored twice: a later window scores what the one before it did not reach.

    Nothing predicts a window's very first token, so it never counts.
    """
    stride = dataset.stride or dataset.window
    return 1 if span.start == 0 else max(1, front + dataset.window - stride)


def _bos(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> int | None:
    if not dataset.bos:
        return None
    if tokenizer.bos_token_id is None:
        raise SourceError("bos: this model's tokenizer has no BOS token; set `bos = false`")
    return int(tokenizer.bos_token_id)


def _too_short(dataset: Dataset, texts: Sequence[Sequence[int]], total: int) -> str:
    longest = max((len(text) for text in texts), default=0)
    return (
        f"too short: {total:,} tokens can be scored in whole windows of {dataset.window}, "
        f"{dataset.tokens:,} are asked for (the text has {sum(map(len, texts)):,} tokens in "
        f"{len(texts)} documents, the longest {longest:,})"
    )


def _fingerprint(tokens: Tensor, first_scored: list[int]) -> str:
    shape_and_scored = json.dumps([list(tokens.shape), first_scored])
    digest = hashlib.sha256(shape_and_scored.encode())
    digest.update(tokens.numpy().astype("<i8", copy=False).tobytes())
    return digest.hexdigest()
