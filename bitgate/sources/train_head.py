"""A classification head on a frozen base: its features are computed once and learned from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitgate.catalog import TrainedSource
from bitgate.sources.architecture import labels_of
from bitgate.sources.cache import once
from bitgate.sources.devices import pick_device, serving_dtype
from bitgate.sources.errors import SourceError
from bitgate.sources.labelled import EncodedItems, LabelledItems, load_items
from bitgate.sources.linear_head import Part, learn
from bitgate.sources.losses import write_losses
from bitgate.sources.progress import track
from bitgate.sources.quiet import without_bars, without_reports
from bitgate.sources.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

AREA = "features"
FILE = "features.safetensors"
BATCH = 32  #: texts at a time, which does not change their features


def train_head(
    folder: Path, base: Path, fingerprint: str, source: TrainedSource, label: str
) -> None:
    """Save into `folder` the model in the directory `base` with a head trained on the dataset, the
    tokenizer (of that directory, unless `source.base` names one), and the losses.

    The features are the last hidden state at each text's last token, as the saved model itself
    takes it. They are kept in the cache under `fingerprint`, which says what the base is, so that
    another head costs seconds.

    Raises:
        SourceError: if the dataset has no texts or no training items, or the base no tokenizer or
            a head that is no single linear layer on the last token.
    """
    import torch

    dataset = source.dataset
    if dataset.of != "texts":
        raise SourceError(
            f"source.dataset: {dataset.name} has {dataset.of}; a head on a language model reads "
            "texts. Without `base`, the whole of a `config` is trained"
        )
    if not dataset.train_items:
        raise SourceError(f"labelled {dataset.name}: train_items: it has none to train with")
    assert source.base is not None
    tokenizer = _tokenizer(source.base.tokenizer or base)

    def part(name: Literal["training", "validation"]) -> Part | None:
        items = load_items(dataset, name)
        if not len(items):
            return None
        encoded = EncodedItems(items, tokenizer, dataset.longest)
        module = partial(_with_head, base, source, tokenizer, label)
        found = _features_once(module, encoded, fingerprint, f"{label}: read {name} texts")
        return Part(found, torch.tensor(items.labels))

    training, validation = part("training"), part("validation")
    assert training is not None
    with track(f"{label}: train", source.epochs, "epochs") as task:
        weight, epochs, kept = learn(
            training, validation, len(dataset.classes), source, lambda one: task.update(one.epoch)
        )
    module = _with_head(base, source, tokenizer, label)
    with torch.no_grad():
        module.score.weight.copy_(weight)
    with without_bars():
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_losses(folder, epochs, kept)


def reader() -> tuple[str, torch.dtype]:
    """The device on which the base reads the texts, and the dtype: what features depend on."""
    device = pick_device("auto")
    return device, serving_dtype(device)


def features(module: nn.Module, items: EncodedItems, label: str) -> Tensor:
    """What the head of a model is given for each of its items: float32 [items, features].

    The shortest first, so that little is padded.
    """
    import torch

    texts = items.items.inputs
    order = sorted(range(len(items)), key=lambda number: len(texts[number]))
    ordered = EncodedItems(_reordered(items.items, order), items.tokenizer, items.longest)
    weight = module.score.weight
    out = torch.empty(len(items), weight.shape[1])
    head, module.score = module.score, torch.nn.Identity()
    try:
        with track(label, len(items), "texts") as task, torch.inference_mode():
            for start in range(0, len(items), BATCH):
                stop = min(start + BATCH, len(items))
                inputs = {k: v.to(weight.device) for k, v in ordered.inputs(start, stop).items()}
                out[order[start:stop]] = module(**inputs).logits.float().cpu()
                task.update(stop)
    finally:
        module.score = head
    return out


def _features_once(
    module: Callable[[], nn.Module], items: EncodedItems, fingerprint: str, label: str
) -> Tensor:
    """The same, from the cache where they are in it; `module` loads the model otherwise."""
    from safetensors.torch import load_file, save_file

    device, dtype = reader()

    def build(folder: Path) -> None:
        with _all_cores():
            found = features(module().to(device, dtype), items, label)
        save_file({"features": found}, folder / FILE)

    versions = [version("torch"), version("transformers")]
    key = fingerprint, device, str(dtype), *versions, items.fingerprint
    found: Tensor = load_file(once(AREA, *key, build=build, label=label) / FILE)["features"]
    return found


@contextmanager
def _all_cores() -> Iterator[None]:
    """Measurements use few threads, to be steady; this is only waited for."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _reordered(items: LabelledItems, order: list[int]) -> LabelledItems:
    return replace(items, inputs=[items.inputs[number] for number in order])


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(directory)
    if tokenizer is None:
        raise SourceError(
            f"source.base: {directory} has no tokenizer; give the base `tokenizer`, a directory "
            "that has one"
        )
    if tokenizer.pad_token is None:  # masked wherever it stands, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _with_head(
    base: Path, source: TrainedSource, tokenizer: PreTrainedTokenizerBase, label: str
) -> nn.Module:
    """The model with an empty head on it."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    for key, value in labels_of(source.dataset).items():
        setattr(config, key, value)
    # the model finds each text's last token by this one, and refuses batches without it
    config.pad_token_id = tokenizer.pad_token_id
    config.use_cache = False  # nothing is generated
    with track(f"{label}: load the base"), without_bars(), without_reports():
        try:
            module: nn.Module = AutoModelForSequenceClassification.from_pretrained(
                base, config=config, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise SourceError(f"source.base: {base} cannot be loaded: {error}") from error
    head = getattr(module, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise SourceError(
            f"source.base: {type(module).__name__} has no head that is one linear layer called "
            "`score` on the last token, as those of language models are"
        )
    return module.eval().requires_grad_(False)
