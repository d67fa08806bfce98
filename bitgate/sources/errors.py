"""What goes wrong with a source, said so that a reader can act on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SourceError(RuntimeError):
    """A model or dataset cannot be had; the message names the entry and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.entry: str | None = None

    def __str__(self) -> str:
        return f"{self.entry}: {self.message}" if self.entry else self.message


class HubUnavailable(SourceError):  # noqa: N818 - a state of the world, and expected at times
    """The model hub cannot be reached from here and the cache does not have what is asked for."""


class DoesNotFit(SourceError):  # noqa: N818 - a state of this machine, and another may have room
    """Something needs more memory than there is; the message has the arithmetic."""


@contextmanager
def blaming(entry: str) -> Iterator[None]:
    """Name the catalog entry, such as `model llama-3.2-1b`, in every source error inside.

    What raises the error often knows only a URL or a file; the innermost name wins.
    """
    try:
        yield
    except SourceError as error:
        error.entry = error.entry or entry
        raise
