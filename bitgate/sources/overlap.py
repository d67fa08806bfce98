"""Whether two texts share tokens: no model is scored on what it was calibrated with.

Datasets that are cut from one text keep apart by position (`Dataset.avoid`). This looks at the
tokens themselves, so it also sees one text under two names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitgate.sources.windows import Windows

#: so many tokens in a row are the same text, and no phrase that two texts happen to share
RUN = 64


def shared_run(one: Windows, other: Windows, length: int = RUN) -> list[int] | None:
    """`length` tokens in a row (or a whole window, if windows are shorter) that stand in windows of
    both; None if there are none."""
    length = min(length, one.tokens.shape[1], other.tokens.shape[1])
    known = set(_runs(one, length))
    for run in _runs(other, length):
        if run in known:
            import numpy as np

            return [int(token) for token in np.frombuffer(run, "<i8")]
    return None


def _runs(text: Windows, length: int) -> Iterator[bytes]:
    """Each run of `length` tokens within a window."""
    for window in text.tokens.numpy().astype("<i8"):
        whole = window.tobytes()
        for start in range(len(window) - length + 1):
            yield whole[8 * start : 8 * (start + length)]


#: so many words in a row are the same text, where texts are compared as they are read
WORDS = 8


def word_runs(texts: Iterable[str]) -> set[tuple[str, ...]]:
    """Each run of `WORDS` words that stands in a text."""
    return {run for text in texts for run in _word_runs(text)}


def shares_words(text: str, runs: set[tuple[str, ...]]) -> bool:
    """Whether one of the runs stands in a text."""
    return bool(runs) and any(run in runs for run in _word_runs(text))


def _word_runs(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return (tuple(words[at : at + WORDS]) for at in range(len(words) - WORDS + 1))
