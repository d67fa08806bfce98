"""`bitgate try`: a quantized checkpoint against its base, without a line of TOML."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

import bitgate
from bitgate.catalog import (
    Catalog,
    CatalogError,
    Dataset,
    Entry,
    HubSource,
    LocalSource,
    Model,
    load_entries,
    nearest,
)
from bitgate.cli.shared import refuse
from bitgate.quantize import QuantizeError, recipe_types
from bitgate.quantize.checkpoint import differences
from bitgate.quantize.checkpoint_files import DEQUANTIZED, Found, find
from bitgate.sources import (
    SourceError,
    TooShortError,
    fetch_model,
    load_documents,
    refuse_too_few,
    windows,
)
from bitgate.statistics import LEAST_SKEWED

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[0-9a-f]{40}))?")
#: of a text file of one's own; what the catalog's `enwiki` has
WINDOW, TOKENS = 128, 4064
CONFTEST = 'pytest_plugins = ["bitgate.plugin"]\n'
PYTEST = '[pytest]\naddopts = ["--import-mode=importlib"]\n'


@click.command("try")
@click.argument("base")
@click.argument("quantized", metavar="CHECKPOINT")
@click.argument("pytest_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST_OPTIONS]")
@click.option(
    "--max-perplexity-ratio",
    type=click.FloatRange(min=0, min_open=True),
    default=1.05,
    show_default=True,
    help="Perplexity over the base's on the same tokens.",
)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0, min_open=True),
    default=0.1,
    show_default=True,
    help="KL(base || quantized), nats a token, over the whole vocabulary.",
)
@click.option(
    "--min-top1",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Share of tokens at which both models prefer the same next one.",
)
@click.option("--speed", is_flag=True, help="Also time decoding, one sequence at a time.")
@click.option(
    "--min-speedup",
    type=click.FloatRange(min=0, min_open=True),
    help="Decoding over the base's speed; implies --speed. Default: recorded, not judged.",
)
@click.option(
    "--dataset",
    default="enwiki",
    show_default=True,
    help="The text: a dataset of the catalog, or a .txt or .jsonl file.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help=f"How many are scored at first. Default: the dataset's own; {TOKENS} for a file.",
)
@click.option("--bos", is_flag=True, help="Put a BOS in front of each window: some models need it.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Leave all this as a project in a new folder; `pytest bench` in it measures again.",
)
@click.option(
    "--catalog",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fixtures"),
    show_default=True,
    help="Folder of your own models.toml and datasets.toml, if there is one.",
)
def try_(
    base: str,
    quantized: str,
    pytest_options: tuple[str, ...],
    max_perplexity_ratio: float,
    max_kl: float,
    min_top1: float,
    speed: bool,
    min_speedup: float | None,
    dataset: str,
    tokens: int | None,
    bos: bool,
    keep: Path | None,
    catalog: Path,
) -> None:
    """Is CHECKPOINT, quantized elsewhere, as good as its unquantized BASE?

    BASE is a model of the catalog, a directory, a .gguf file, or a hub id such as owner/name.
    CHECKPOINT is a directory as transformers saves them (bitsandbytes, GPTQ, AWQ,
    compressed-tensors, torchao), a .gguf file, or a hub id. A hub id may end in @REVISION (40 hex
    digits); else it is what the hub has now, and the report says which that was.

    Both score the same text. Each bound is judged with a 98 % confidence interval; more text is
    scored while one is undecided. Size on disk and in memory are recorded.

    \b
    Examples:
      bitgate try llama-smollm2-135m ./smollm2-nf4
      bitgate try meta-llama/Llama-3.2-1B-Instruct ./my-gptq --speed --min-speedup 1.3
      bitgate try ./base ./model-Q4_K_M.gguf --max-kl 0.05 --dataset mine.txt
      bitgate try ./base ./awq --keep ./gate -- --device cuda --budget 30

    Exit status as pytest's: 0 if nothing missed its bound, 1 if something did or broke, 2 after
    Ctrl-C, 4 if what was asked for makes no sense.
    """
    try:
        known = load_entries(catalog.absolute(), recipe_types())
        model = _base(base, known)
        recipe, found = _checkpoint(quantized)
        text = _dataset(dataset, known, tokens, bos)
        if found is not None:
            _say(model, found)
        if tokens is not None or dataset not in known.datasets:
            _cut(model, text)
    except (CatalogError, QuantizeError, SourceError) as error:
        refuse(error)
    if keep is not None and keep.exists() and any(keep.iterdir()):
        refuse(f"--keep: {keep} is not empty")
    bounds: dict[str, dict[str, float]] = {
        "perplexity_ratio": {"max": max_perplexity_ratio},
        "kl_divergence": {"max": max_kl},
        "top1_agreement": {"min": min_top1},
        "packed_layers": {"within": 0},
        "reload_difference": {"max": 0},
    }
    if min_speedup is not None:
        bounds["speedup"] = {"min": min_speedup}
    place = nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="bitgate-try-")
    with place as folder:
        project = Path(folder)
        _write(project, model, recipe, text, speed or min_speedup is not None, bounds)
        saving = ("--benchmark-autosave",) if keep else ()
        status = _pytest(project, *saving, *pytest_options)
    if keep is not None:
        click.echo(f"kept in {keep}: `pytest bench` there measures again")
    sys.exit(status)


# --- what is meant -------------------------------------------------------------------------


def _base(text: str, known: Catalog) -> Model:
    if text in known.models:
        return known.models[text]
    path, name = Path(text), _name(text)
    if path.exists():
        source: Entry = LocalSource(kind="local", path=path.absolute())
        if path.is_dir():
            how = find(path)
            if how.format != "none":
                raise QuantizeError(
                    f"BASE: {text} is quantized itself ({how.format}); give what it was made of"
                )
        elif path.suffix != ".gguf":
            raise CatalogError(f"BASE: {text}: a model is a directory or a .gguf file")
        return _model(name, source, "transformers" if path.is_dir() else "gguf")
    if HUB_ID.fullmatch(text):
        return _model(name, _hub(text, "BASE"), "transformers")
    raise CatalogError(
        f"BASE: {text}: no such directory or file, no hub id, and no model of the catalog is "
        f"called so; {nearest(text, known.models)}"
    )


def _model(name: str, source: Entry, format_: str) -> Model:
    fields = {"name": name, "family": "unknown", "source": source.model_dump(), "format": format_}
    return Model.model_validate(fields)


def _checkpoint(text: str) -> tuple[dict[str, Any], Found | None]:
    """A recipe's keys, and what it is about if that lies here already."""
    path = Path(text)
    keys: dict[str, Any] = {"method": "checkpoint", "label": _name(text)}
    if path.exists():
        found = find(path)
        bits = {} if found.bits is None else {"bits": found.bits}
        return {**keys, **bits, "source": {"kind": "local", "path": str(path.absolute())}}, found
    if HUB_ID.fullmatch(text):
        return {**keys, "source": _toml(_hub(text, "CHECKPOINT"))}, None
    raise CatalogError(f"CHECKPOINT: {text}: no such directory or file, and no hub id (owner/name)")


def _hub(text: str, argument: str) -> HubSource:
    from bitgate.sources.hub import newest_revision

    named = HUB_ID.fullmatch(text)
    assert named is not None
    try:
        revision = named["revision"] or newest_revision(named["repo"])
    except SourceError as error:
        raise SourceError(
            f"{argument}: there is no {text} here, so it is a hub id: {error}"
        ) from None
    return HubSource(kind="hub", repo=named["repo"], revision=revision)


def _name(text: str) -> str:
    """What it is called in reports: the last part of its path or id."""
    last = Path(text.partition("@")[0]).resolve().name.removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._") or "model"


def _dataset(text: str, known: Catalog, tokens: int | None, bos: bool) -> Dataset:
    path = Path(text)
    if text in known.datasets:
        dataset = known.datasets[text]
    elif path.is_file():
        fields = {"name": _name(path.stem), "source": {"kind": "local", "path": path.absolute()}}
        kind = "jsonl" if path.suffix == ".jsonl" else "plain"
        protocol = {"window": WINDOW, "stride": WINDOW, "tokens": TOKENS}
        dataset = Dataset.model_validate({**fields, "format": kind, **protocol})
    else:
        raise CatalogError(
            f"--dataset: {text}: no such file, and no dataset of the catalog is called so; "
            f"{nearest(text, known.datasets)}"
        )
    changes: dict[str, Any] = {"bos": bos or dataset.bos, "avoid": ()}
    if tokens is not None:
        changes |= {"tokens": tokens, "tokens_limit": None}
    dataset = dataset.model_copy(update=changes)
    if too_few := dataset.too_few_for(LEAST_SKEWED):
        key, least = too_few
        option = f"--tokens: {tokens}" if tokens is not None else f"--dataset: {text}: {key}"
        raise CatalogError(
            f"{option}: scored in fewer than the {LEAST_SKEWED} windows of {dataset.window} "
            f"tokens that an interval takes; give at least {least}"
        )
    return dataset


def _cut(model: Model, text: Dataset) -> None:
    """Cut one's own text, or so many tokens of another, as the run will, which finds the tokens in
    the cache: what is too short is known before anything is loaded, and said by options."""
    from bitgate.sources.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(model.tokenizer or fetch_model(model))
    if tokenizer is None:
        raise CatalogError(f"BASE: {model.name} has no tokenizer to read text with")
    try:
        refuse_too_few(windows(text, tokenizer, load_documents(text)), text)
    except TooShortError as error:
        raise CatalogError(
            f"--dataset: {text.name}: {error.found}. Lower --tokens, give a longer text, or one of "
            "the datasets.toml of --catalog, where `window` and `join` can be set"
        ) from None


def _say(model: Model, found: Found) -> None:
    """What was found, and what is wrong with it, before anything is loaded."""
    if isinstance(model.source, LocalSource) and model.source.path.is_dir():
        base = find(model.source.path).config
        if told := list(differences(base, found.config)):
            raise QuantizeError(
                f"{found.path} is of another model than {model.source.path}: {'; '.join(told)}"
            )
    if found.format == "none":
        click.echo(f"note: {found.path} is not quantized; it is measured as it is", err=True)
        return
    bits = f", {found.bits} bits" if found.bits else ""
    size = sum(file.stat().st_size for file in found.weights()) / 2**20
    click.echo(f"{found.path}: {found.format}{bits}, {size:.1f} MiB of weights")
    if found.kernel == DEQUANTIZED:
        click.echo(
            "note: transformers dequantizes this format, so quality and size on disk are the "
            "checkpoint's, memory and speed are not"
        )


# --- the project ---------------------------------------------------------------------------


def benchmarks() -> Path:
    """The folder of Bitgate's benchmarks: beside the package, or, where it is installed, in it."""
    package = Path(bitgate.__file__).parent
    inside = package / "bench"
    return inside if inside.is_dir() else package.parent / "bench"


def _write(
    folder: Path,
    model: Model,
    recipe: Mapping[str, Any],
    text: Dataset,
    speed: bool,
    bounds: Mapping[str, Mapping[str, float]],
) -> None:
    """A whole project: the benchmarks, a catalog of one cell, and its gates."""
    (folder / "bench").mkdir(parents=True)
    for kind in ("quantize", "perplexity", *(("decode",) if speed else ())):
        shutil.copy(benchmarks() / f"test_{kind}.py", folder / "bench")
    (folder / "conftest.py").write_text(CONFTEST, "utf-8")
    (folder / "pytest.toml").write_text(PYTEST, "utf-8")
    entry: dict[str, Any] = {
        "cadence": "commit",
        "models": [model.name],
        "recipes": [f"checkpoint-{recipe['label']}"],
        "quantize": True,
        "perplexity": [text.name],
        **({"decode": ["b1"]} if speed else {}),
    }
    phase = {"decode": {"b1": {"batch": 1, "prompt": 32, "output": 48}}} if speed else {}
    gate = {"name": "good enough", "require": bounds}
    tables: dict[str, dict[str, Any]] = {
        "fixtures/models.toml": {"model": {model.name: _toml(model, "name")}},
        "fixtures/datasets.toml": {"dataset": {text.name: _toml(text, "name", "avoid")}},
        "fixtures/recipes.toml": {"recipe": [recipe]},
        "fixtures/matrix.toml": {**phase, "matrix": [entry]},
        "thresholds.toml": {"gate": [gate]},
    }
    import tomlkit

    for name, content in tables.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(tomlkit.dumps(content), "utf-8")


def _toml(entry: Entry, *but: str) -> dict[str, Any]:
    """An entry as TOML would say it."""
    content: dict[str, Any] = json.loads(entry.model_dump_json(exclude_none=True, exclude=set(but)))
    return content


def _pytest(folder: Path, *options: str) -> int:
    """In a process of its own, which reports as it always does."""
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-quiet", *options]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told it, too: it sums up what it has
            return process.wait()
