"""One file behind a URL or a path, checked against its sha256."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath

from bitgate.catalog import FileSource
from bitgate.sources.checksum import copy_checked
from bitgate.sources.errors import SourceError
from bitgate.sources.progress import track

TIMEOUT = 60.0
_SCHEMES = ("https", "http", "file")


def fetch_file(source: FileSource, into: Path, label: str) -> Path:
    """Put the source's file, checked, into the folder `into`."""
    url = source.url if "://" in source.url else _file_url(source.url)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise SourceError(f"{url}: only {', '.join(_SCHEMES)} and plain paths can be fetched")
    name = PurePosixPath(urllib.parse.unquote(parts.path)).name or "file"
    try:
        _copy(url, into / name, source.sha256, f"{label}: download {name}")
    except urllib.error.HTTPError as error:
        raise SourceError(f"{url}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if parts.scheme == "file":
            raise SourceError(f"{url}: no such file ({error.reason})") from error
        raise SourceError(
            f"{url} cannot be reached ({error.reason}); check the address, the network and the "
            "proxy settings"
        ) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise SourceError(f"{url}: the download broke off ({error!r}); try again") from error
    return into / name


def _copy(url: str, target: Path, sha256: str, label: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        header = response.headers.get("Content-Length")
        length = int(header) if header else None
        with track(label, length, "B") as task:
            copy_checked(response, target, sha256, length, task.advance)


def _file_url(path: str) -> str:
    return Path(path).expanduser().absolute().as_uri()
