"""Streaming SHA-256 checks: what is not what the catalog says is deleted, never used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from bitgate.sources.errors import SourceError

BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_checked(
    stream: IO[bytes],
    target: Path,
    sha256: str,
    length: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Copy `stream` into `target` while hashing it; a wrong length or hash does not stay."""
    digest = hashlib.sha256()
    done = 0
    try:
        with target.open("wb") as file:
            while block := stream.read(BLOCK):
                digest.update(block)
                file.write(block)
                advance(len(block))
                done += len(block)
        if length is not None and done != length:
            raise SourceError(
                f"{target.name} is truncated: {done:,} of {length:,} bytes came; "
                "it was deleted, try again"
            )
        if digest.hexdigest() != sha256:
            raise SourceError(
                f"{target.name} has another content than expected: its sha256 is "
                f"{digest.hexdigest()}, the catalog says {sha256}; it was deleted. "
                "If the new content is meant, correct the catalog's sha256"
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise
