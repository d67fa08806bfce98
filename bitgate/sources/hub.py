"""Models and datasets of a model hub, at the pinned revision.

They stay in the hub library's own cache, which other tools of the user share; it has its own locks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitgate.catalog import HubSource
from bitgate.sources.cache import explaining_os_errors
from bitgate.sources.errors import HubUnavailable, SourceError
from bitgate.sources.progress import Task, track

_ALWAYS = ["*.json", "*.txt", "*.jinja", "tokenizer*", "*.model"]
_NEVER = ["original/*", "onnx/*"]  # the same weights again, for other tools
_WEIGHTS = ["*.safetensors", "*.bin"]  # in order of preference; transformers reads .bin safely


def fetch_snapshot(source: HubSource, label: str) -> Path:
    """The directory with config, tokenizer and weights: safetensors if the repository has them."""
    for weights in _WEIGHTS:
        with track(f"{label}: download {source.repo}", unit="B") as task, _explaining(source):
            folder = Path(_snapshot(source, [*_ALWAYS, weights], task))
        if any(folder.glob(weights)):
            return folder
    raise SourceError(f"{source.repo} has neither .safetensors nor .bin weights at its top level")


def fetch_config_file(source: HubSource, label: str) -> Path:
    """The directory with the repository's `config.json`, perhaps without anything else."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def file(**options: Any) -> Path:
        return Path(
            hf_hub_download(source.repo, "config.json", revision=source.revision, **options)
        )

    with track(f"{label}: look at {source.repo}"), _explaining(source):
        try:
            return file(local_files_only=True).parent
        except LocalEntryNotFoundError:
            _reach()
            return file().parent


def _reach() -> None:
    """Ask the hub once: where there is none, the hub library asks again for half a minute."""
    from huggingface_hub import constants, get_session

    if not constants.HF_HUB_OFFLINE:
        get_session().head(constants.ENDPOINT, timeout=5)


def newest_revision(repo: str) -> str:
    """The commit that a model's repository is at now, 40 hex digits."""
    from huggingface_hub import HfApi

    with _explaining(HubSource(kind="hub", repo=repo, revision="0" * 40)):
        return str(HfApi().model_info(repo).sha)


def fetch_column(source: HubSource, column: str, label: str) -> list[str]:
    """One text column of a dataset, a string per record; a record of several texts, such as the
    turns of a conversation, is these with an empty line between, and one of nothing is empty."""
    records = fetch_records(source, (column,), label)[column]
    return ["\n\n".join(x) if isinstance(x, list) else "" if x is None else str(x) for x in records]


def fetch_records(source: HubSource, columns: Sequence[str], label: str) -> Any:
    """A split of a dataset, which has at least these columns: a record by its number, or a column
    by its name."""
    import datasets

    if source.split is None:
        raise SourceError(f"{source.repo}: a dataset needs the key `split`, such as 'test'")
    with track(f"{label}: load {source.repo}"), _explaining(source):
        # a repository's own code is never run: this library has no way to, and needs no forbidding
        records = datasets.load_dataset(
            source.repo, source.subset, split=source.split, revision=source.revision
        )
    for column in columns:
        if column not in records.column_names:
            there = ", ".join(records.column_names)
            raise SourceError(f"{source.repo} has no column {column!r}; there is {there}")
    return records


def _snapshot(source: HubSource, patterns: list[str], task: Task) -> str:
    from huggingface_hub import snapshot_download

    folder: str = snapshot_download(
        source.repo,
        revision=source.revision,
        allow_patterns=patterns,
        ignore_patterns=_NEVER,
        tqdm_class=_reporting_bar(task),
    )
    return folder


def _reporting_bar(task: Task) -> type[Any]:
    """A progress bar for the hub library that draws nothing and reports through `task`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            # there may be a bar for what is received and one for what is written
            if self.counts_bytes and self.n > task.done:
                task.update(int(self.n), int(self.total or 0) or None)

    return Bar


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Say what goes wrong while another library fetches something from the hub, of whatever
    revision it wants."""
    with _explaining(HubSource(kind="hub", repo=what, revision="0" * 40)):
        yield


@contextmanager
def _explaining(source: HubSource) -> Iterator[None]:
    with explaining_os_errors():
        try:
            yield
        except SourceError:
            raise
        except Exception as error:
            explained = _explain(source, error)
            if explained is None:
                raise
            raise explained from error


def _explain(source: HubSource, error: Exception) -> SourceError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"{source.repo} is gated: accept its licence on its page at the model hub, then log in "
            "with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError) or "Revision '" in str(error):
        return SourceError(f"{source.repo} has no revision {source.revision}; correct the catalog")
    if isinstance(error, errors.RepositoryNotFoundError) or _is_named(error, "DatasetNotFound"):
        return SourceError(
            f"{source.repo} does not exist or is private; check the name, or log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, ConnectionError | errors.LocalEntryNotFoundError) or _is_http(error):
        return HubUnavailable(
            f"the model hub cannot be reached to fetch {source.repo}{_at(source)}, "
            "and the hub's cache does not have all of it. Check the network, HF_ENDPOINT, "
            f"HF_HUB_OFFLINE and the proxy settings ({_first_line(error)})"
        )
    if isinstance(error, ValueError | errors.EntryNotFoundError):
        return SourceError(f"{source.repo}: {error}")
    return None


def _at(source: HubSource) -> str:
    return f" at {source.revision[:12]}" if source.revision.strip("0") else ""


def _is_named(error: Exception, name: str) -> bool:
    return any(name in base.__name__ for base in type(error).__mro__)


def _is_http(error: Exception) -> bool:
    """Whether the hub's HTTP library raised it; which library that is changes with its releases."""
    return any(base.__module__.startswith(("httpx", "requests")) for base in type(error).__mro__)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
