"""One file of any source that is a file: package, URL or local; checked, and known by its hash."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from bitgate.catalog import FileSource, LocalSource, PackageSource
from bitgate.sources.cache import once
from bitgate.sources.checksum import sha256_of
from bitgate.sources.errors import SourceError
from bitgate.sources.file import fetch_file
from bitgate.sources.package import fetch_package_file

SingleFile = PackageSource | FileSource | LocalSource


def identity(source: SingleFile) -> str:
    """The sha256 of the file: promised by the catalog, or of the local file as it is now."""
    if isinstance(source, LocalSource):
        return sha256_of(_local(source))
    return source.sha256


def fetch(source: SingleFile, into: Path, label: str) -> Path:
    """The file: a local one where it is, any other checked and put into the folder `into`."""
    if isinstance(source, PackageSource):
        return fetch_package_file(source, into, label)
    if isinstance(source, FileSource):
        return fetch_file(source, into, label)
    return _local(source)


def fetch_once(source: SingleFile, label: str) -> Path:
    """The file, kept in the cache: for files that are used as they come."""
    if isinstance(source, LocalSource):
        return _local(source)

    def build(folder: Path) -> None:
        fetch(source, folder, label)

    name = source.file if isinstance(source, PackageSource) else source.url
    suffix = PurePosixPath(name).suffix  # decides how the file is read, so it is part of the key
    folder = once("files", source.sha256, suffix, build=build, label=label)
    return next(folder.iterdir())


def _local(source: LocalSource) -> Path:
    if not source.path.is_file():
        raise SourceError(f"{source.path}: there is no such file")
    return source.path
