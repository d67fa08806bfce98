"""The cache directory: everything in it is built exactly once, whole or not at all.

An item is a folder, addressed by a hash of everything that determines its content. It is built in
a temporary folder beside its place and renamed into it, under a lock that other processes wait for.
So a failed build leaves nothing behind, and a folder that is there is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import platformdirs

from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.progress import track

ENVIRONMENT_VARIABLE = "BITGATE_CACHE"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_directory() -> Path:
    """`BITGATE_CACHE`, or this platform's cache directory of the user."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    return (
        Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("bitgate")
    )


def once(area: str, *key: str | int, build: Callable[[Path], None], label: str) -> Path:
    """The folder that `build` fills for this key; it is built only if no process has done so.

    `area` is the cache's subdirectory, `key` everything that determines the content, `label` the
    catalog entry that wants it, for messages. `build` gets an empty folder; whatever it raises,
    nothing partial stays.
    """
    with blaming(label), explaining_os_errors():
        folder = cache_directory() / area
        final = folder / _address(key)
        if final.is_dir():
            return final
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(_lock_of(final), label):
            if not final.is_dir():  # another process may have built it while this one waited
                _sweep(folder, but=_temporary_of(final))
                _build(final, build)
        return final


def built(area: str, *key: str | int) -> Path | None:
    """The folder that `once` has filled for this key; None if it has not."""
    folder = cache_directory() / area / _address(key)
    return folder if folder.is_dir() else None


def _address(key: tuple[str | int, ...]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _lock_of(final: Path) -> Path:
    return final.with_name(final.name + ".lock")


def _temporary_of(final: Path) -> Path:
    return final.with_name(final.name + ".tmp")


def _build(final: Path, build: Callable[[Path], None]) -> None:
    temporary = _temporary_of(final)
    shutil.rmtree(temporary, ignore_errors=True)  # we hold the lock: whoever left it is dead
    temporary.mkdir()
    try:
        build(temporary)
        temporary.rename(final)
    except BaseException:  # also Ctrl-C
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sweep(folder: Path, but: Path) -> None:
    """Remove temporary folders whose builders died: those whose lock nobody holds."""
    for temporary in set(folder.glob("*.tmp")) - {but}:
        lock = filelock.FileLock(_lock_of(temporary.with_suffix("")), timeout=0)
        with suppress(filelock.Timeout), lock:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(path: Path, label: str) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0.2)
    except filelock.Timeout:
        with track(f"{label}: waiting for another process that is fetching it"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def explaining_os_errors() -> Iterator[None]:
    """Turn a full disk, and whatever else the system refuses, into an error with a remedy."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise SourceError(_disk_full_message()) from error
        if isinstance(error, OSError):
            place = (
                f"; the cache is in {cache_directory()}, "
                f"another place can be set with {ENVIRONMENT_VARIABLE}"
            )  # helps only if the system refused something; libraries raise OSErrors of their own
            raise SourceError(f"{error}{place if error.errno else ''}") from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a full disk or quota.

    Libraries written in Rust pass the system's error on as text only.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _disk_full_message() -> str:
    cache = cache_directory()
    free = shutil.disk_usage(cache).free
    return (
        f"the disk is full: {free / 2**20:,.0f} MiB are free where the cache is, {cache}, now that "
        "the partial files are gone, and more is needed. Make room there, or set "
        f"{ENVIRONMENT_VARIABLE} to a directory on a larger disk"
    )
