"""Where a figure comes from: the host, its package versions and the commit of its checkout.

Needs nothing but Python. The controller of a run on several hosts sends this file to each of them,
to ask before anything is measured there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("bitgate", "torch", "transformers", "hqq", "numpy", "gemlite"),
    *("bitsandbytes", "compressed-tensors", "torchao"),
)
#: what passes records on; recorded nowhere, but no two hosts of a run may differ in it
HARNESS = ("pytest", "pytest-benchmark", "pytest-xdist", "execnet")

#: what files that git does not know must be, to change a figure; others are what runs leave
NEW = (".py", ".toml")

#: where the checkout that measures is; None: where the process was started
checkout: Path | None = None
#: the commit, as the controller knows it, where this is a copy of its checkout without `.git`
copied: str | None = None


def host() -> str:
    """The name of the machine."""
    return platform.node()


@cache
def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Of everything that can change a figure."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The revision of the checkout that measures, `+` if it has changes; None without git."""
    return copied or _described(checkout)


@cache
def _described(_: Path | None) -> str | None:
    described = _git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    return None if described is None else described.decode().strip()


def changes(but: str | None = None) -> str | None:
    """A digest of what the checkout changes since its commit: in files that git knows, and by
    Python and TOML files that it neither knows nor ignores. None for no changes, or no git. Files
    called `but` do not count."""
    left_out = [] if but is None else [f":(top,exclude,glob)**/{but}"]
    changed = _git("diff", "HEAD", "--no-ext-diff", "--binary", "--", ":(top)", *left_out)
    if changed is None:
        return None
    digest = hashlib.sha256(changed)
    new = [f":(top,glob)**/*{suffix}" for suffix in NEW]
    names = _git(
        *("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--"), *new, *left_out
    )
    top = Path(os.fsdecode((_git("rev-parse", "--show-toplevel") or b"").rstrip(b"\n")))
    found = sorted(name for name in (names or b"").split(b"\0") if name)
    for name in found:
        digest.update(b"\0" + name + b"\0")
        with suppress(OSError):  # it has gone since
            digest.update((top / os.fsdecode(name)).read_bytes())
    return digest.hexdigest()[:16] if changed or found else None


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=checkout, capture_output=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def origin() -> dict[str, Any]:
    """All of it, as JSON can hold it."""
    return {
        "host": host(),
        "folder": str(Path.cwd() / (checkout or "")),
        "versions": versions(PACKAGES + HARNESS),
        "commit": commit(),
        "changes": changes(),
    }


def identity(folder: str | os.PathLike[str]) -> list[int] | None:
    """The same for two names of one folder, also on two hosts that share it; None if there is
    no such folder."""
    try:
        found = Path(folder).stat()
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns]


if __name__ == "__channelexec__":  # on a host that was asked, see bitgate/plugin/hosts.py
    asker: Any = globals()["channel"]
    question = asker.receive()
    checkout = Path(question["checkout"])
    asker.send({**origin(), "folders": {name: identity(name) for name in question["folders"]}})
