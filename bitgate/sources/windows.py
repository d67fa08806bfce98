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


class Span(NamedTuple):
    """Where a window lies."""

    document: int
    start: int


def windows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]
) -> Windows:
    """As many windows as scoring `tokens_limit` tokens takes, by default twice `tokens`."""
    with blaming(dataset_label(dataset)):
        encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)
        return cut(dataset, encoded["input_ids"], _bos(dataset, tokenizer))


def cut(dataset: Dataset, texts: Sequence[Sequence[int]], bos: int | None) -> Windows:
    """The windows of documents that are tokens already; `bos` goes in front of each window."""
    import torch

    limit = dataset.tokens_limit or 2 * dataset.tokens
    front = [] if bos is None else [bos]
    chosen: list[Span] = []
    first_scored: list[int] = []
    total = 0
    for span in _drawn(dataset, [len(text) for text in texts]):
        if total >= limit:
            break
        chosen.append(span)
        first_scored.append(_first_scored(dataset, span, len(front)))
        total += len(front) + dataset.window - first_scored[-1]
    if total < dataset.tokens:
        raise SourceError(_too_short(dataset, texts, total))
    tokens = torch.tensor(
        [[*front, *texts[span.document][span.start :][: dataset.window]] for span in chosen]
    )
    return Windows(
        tokens=tokens,
        scored=torch.tensor(first_scored),
        document=torch.tensor([span.document for span in chosen]),
        fingerprint=_fingerprint(tokens, first_scored),
    )


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
        f"{len(texts)} documents, the longest {longest:,}). Lower `tokens` or `window`, "
        "set `join`, or choose a longer text"
    )


def _fingerprint(tokens: Tensor, first_scored: list[int]) -> str:
    shape_and_scored = json.dumps([list(tokens.shape), first_scored])
    digest = hashlib.sha256(shape_and_scored.encode())
    digest.update(tokens.numpy().astype("<i8", copy=False).tobytes())
    return digest.hexdigest()
