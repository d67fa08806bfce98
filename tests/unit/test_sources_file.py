"""Files behind URLs and paths, from a real server on this machine."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bitgate.catalog import FileSource
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.fetch import fetch_once
from bitgate.sources.file import fetch_file
from bitgate.sources.progress import Report, reporting_to

DATA = b"text " * 100_000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves DATA; below /cut/ only half of what it promises."""

    def do_GET(self):
        if not self.path.endswith("text.txt"):
            self.send_error(404, "Nothing here")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[: len(DATA) // 2] if "/cut/" in self.path else DATA)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


def source(url: str, sha256: str = SHA256) -> FileSource:
    return FileSource(kind="file", url=url, sha256=sha256)


def test_a_download_is_checked_kept_and_shows_its_progress(server):
    reports: list[Report] = []
    with reporting_to(reports.append):
        path = fetch_once(source(f"{server}/text.txt"), "dataset x")
    assert path.read_bytes() == DATA
    assert reports[-1].done == reports[-1].total == len(DATA)
    assert reports[0].label == "dataset x: download text.txt"


def test_the_same_content_is_fetched_once_from_wherever(server, tmp_path):
    first = fetch_once(source(f"{server}/text.txt"), "dataset x")
    assert fetch_once(source(f"{server}/cut/text.txt"), "dataset y") == first


def test_paths_and_file_urls(tmp_path):
    local = tmp_path / "some text.txt"
    local.write_bytes(DATA)
    for number, url in enumerate((str(local), local.as_uri())):
        into = tmp_path / f"into{number}"
        into.mkdir()
        assert fetch_file(source(url), into, "x").name == "some text.txt"


@pytest.mark.parametrize(
    ("path", "sha256", "says"),
    [
        ("/cut/text.txt", SHA256, "truncated: 250,000 of 500,000 bytes"),
        ("/text.txt", "0" * 64, f"its sha256 is {SHA256}, the catalog says {'0' * 64}"),
        ("/other", SHA256, "the server answered 404 Nothing here"),
    ],
)
def test_what_goes_wrong_is_said_and_leaves_nothing(server, cache, path, sha256, says):
    with pytest.raises(SourceError, match=says) as raised:
        fetch_once(source(server + path, sha256), "dataset x")
    assert str(raised.value).startswith("dataset x: ")
    assert [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"] == []
    assert fetch_once(source(f"{server}/text.txt"), "dataset x").read_bytes() == DATA


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9/x", "cannot be reached"),
        ("ftp://127.0.0.1/x", "only https, http, file"),
        ("/no/such/file", "no such file"),
    ],
)
def test_what_cannot_be_fetched(tmp_path, url, says):
    with pytest.raises(SourceError, match=says):
        fetch_file(source(url), tmp_path, "x")


def test_the_innermost_entry_is_blamed():
    with pytest.raises(SourceError, match=r"^dataset x: broken$"):  # noqa: SIM117
        with blaming("model y"), blaming("dataset x"):
            raise SourceError("broken")
