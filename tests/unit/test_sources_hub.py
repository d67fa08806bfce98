"""A model hub, played by a server on this machine."""

import json
import os
import re
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.errors
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from bitgate.catalog import HubSource
from bitgate.sources.errors import HubUnavailable, SourceError
from bitgate.sources.hub import _explain, fetch_column

REVISION = "a" * 40
FILES = {
    "both/model": ["config.json", "model.safetensors", "pytorch_model.bin", "original/model.pth"],
    "old/model": ["config.json", "pytorch_model.bin"],
    "no/weights": ["config.json"],
    "gated/model": ["config.json", "model.safetensors"],
}


class Hub(BaseHTTPRequestHandler):
    """The part of a hub's API that a download of a pinned revision takes."""

    def do_GET(self):
        if self.path == "/":
            self.answer(200, b"", {})
            return
        tree = re.match(r"/api/models/(\w+/\w+)/tree/(\w+)", self.path)
        file = re.match(r"/(\w+/\w+)/resolve/(\w+)/([^?]+)", self.path)
        repo, revision = (tree or file).group(1, 2)
        if repo not in FILES:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision != REVISION:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif tree:
            entries = [
                {"type": "file", "path": name, "size": len(name), "oid": "0" * 40}
                for name in FILES[repo]
            ]
            self.answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        elif repo == "gated/model":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            body = file[3].encode()  # every file holds its own name
            etag = f'"{sha256(body).hexdigest()}"'
            self.answer(200, body, {"ETag": etag, "X-Repo-Commit": REVISION})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


CODE = """
import sys
from bitgate.catalog import HubSource
from bitgate.sources.hub import {function}
from bitgate.sources.errors import SourceError
source = HubSource(kind="hub", repo=sys.argv[1], revision=sys.argv[2], split="test")
try:
    result = {call}
except SourceError as error:
    print(type(error).__name__, error)
else:
    print(sorted(path.relative_to(result).as_posix() for path in result.rglob("*")))
"""
SNAPSHOT = CODE.format(function="fetch_snapshot", call='fetch_snapshot(source, "model x")')
CONFIG = CODE.format(function="fetch_config_file", call='fetch_config_file(source, "model x")')
COLUMN = CODE.format(function="fetch_column", call='fetch_column(source, "text", "dataset x")')


@pytest.fixture
def fetch(hub, tmp_path):
    def run(repo, revision=REVISION, code=SNAPSHOT, **environment):
        # the hub library reads its settings when it is imported: a process of its own
        settings = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
        settings |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", **environment}
        # nor what a package sets that another test imports: gptqmodel's HF_HUB_CACHE
        ours = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-c", code, repo, revision],
            env={**ours, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_safetensors_come_and_nothing_twice(fetch):
    assert fetch("both/model") == "['config.json', 'model.safetensors']"
    assert fetch("both/model", HF_HUB_OFFLINE="1") == "['config.json', 'model.safetensors']"


def test_bin_comes_if_there_is_nothing_else(fetch):
    assert fetch("old/model") == "['config.json', 'pytorch_model.bin']"


@pytest.mark.parametrize(
    ("repo", "revision", "says"),
    [
        ("no/weights", REVISION, "SourceError no/weights has neither .safetensors nor .bin"),
        ("gated/model", REVISION, "SourceError gated/model is gated: accept its licence"),
        ("no/such", REVISION, "SourceError no/such does not exist or is private"),
        ("both/model", "b" * 40, f"SourceError both/model has no revision {'b' * 40}"),
    ],
)
def test_what_the_hub_refuses_is_said_with_its_remedy(fetch, repo, revision, says):
    assert fetch(repo, revision).startswith(says)


def test_a_config_comes_without_weights(fetch):
    assert fetch("both/model", code=CONFIG) == "['config.json']"
    assert fetch("both/model", code=CONFIG, HF_HUB_OFFLINE="1") == "['config.json']"
    assert fetch("gated/model", code=CONFIG).startswith("SourceError gated/model is gated")


@pytest.mark.parametrize("code", [SNAPSHOT, CONFIG, COLUMN], ids=["model", "config", "dataset"])
def test_no_hub_is_an_error_of_its_own(fetch, code):
    said = fetch("both/model", code=code, HF_HUB_OFFLINE="1")
    assert said.startswith("HubUnavailable the model hub cannot be reached"), said


@pytest.mark.parametrize(
    "error", [ConnectionError("refused"), LocalEntryNotFoundError("refused"), "ConnectError"]
)
def test_an_unreachable_hub_too(error):
    if isinstance(error, str):  # of whichever HTTP library the hub library uses
        http = huggingface_hub.errors.HTTPError.__mro__[0].__module__.split(".")[0]
        error = getattr(pytest.importorskip(http), error)("refused")
    source = HubSource(kind="hub", repo="both/model", revision=REVISION)
    assert isinstance(_explain(source, error), HubUnavailable)


def test_a_dataset_gives_one_column(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(repo, subset, **options):
        asked.update(repo=repo, subset=subset, **options)
        more = {"turns": [["Why?", "Because."], ["So?"], []], "some": ["a", None, "b"]}
        return datasets.Dataset.from_dict({"text": ["a", "", "b"], "id": [1, 2, 3], **more})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = HubSource(kind="hub", repo="some/text", revision=REVISION, subset="raw", split="test")
    assert fetch_column(source, "text", "x") == ["a", "", "b"]
    assert asked == {"repo": "some/text", "subset": "raw", "split": "test", "revision": REVISION}
    assert fetch_column(source, "turns", "x") == ["Why?\n\nBecause.", "So?", ""]
    assert fetch_column(source, "some", "x") == ["a", "", "b"]  # nothing is no text "None"
    with pytest.raises(SourceError, match=r"no column 'txt'; there is text, id, turns, some"):
        fetch_column(source, "txt", "x")
    with pytest.raises(SourceError, match="needs the key `split`"):
        fetch_column(source.model_copy(update={"split": None}), "text", "x")
