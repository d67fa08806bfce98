"""GGUF files, converted once into a directory that transformers loads in a moment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bitgate.sources.cache import built, explaining_os_errors, once
from bitgate.sources.errors import SourceError
from bitgate.sources.fetch import SingleFile, fetch, identity
from bitgate.sources.imports import import_transformers
from bitgate.sources.memory import check_fits
from bitgate.sources.progress import track
from bitgate.sources.quiet import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONVERTER = 1  #: raise it when the conversion's result changes
_HEADROOM = 2.2  # the dequantized tensors exist twice for a moment


def gguf_directory(source: SingleFile, label: str) -> Path:
    """The converted file: `config.json`, fp32 `model.safetensors`, tokenizer."""

    def build(folder: Path) -> None:
        work = folder / ".gguf"
        work.mkdir()
        convert(fetch(source, work, label), folder, label)
        shutil.rmtree(work)

    return once("gguf", *conversion_key(source), build=build, label=label)


def gguf_config(source: SingleFile, label: str) -> PreTrainedConfig:
    """The model's configuration: of the converted file if there is one, else of the file's header.

    No tensor is read. A file that is not on this machine is fetched, and does not stay.
    """
    import_transformers()
    from transformers import AutoConfig

    converted = built("gguf", *conversion_key(source))
    if converted is not None:
        return AutoConfig.from_pretrained(converted, trust_remote_code=False)
    with TemporaryDirectory(prefix="bitgate-gguf-") as folder, explaining_os_errors():
        return _header(fetch(source, Path(folder), label))


def _header(file: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    with without_bars(), _without_reader_bar(), _explaining(file.name):
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def conversion_key(source: SingleFile) -> tuple[str | int, ...]:
    """Everything that determines the converted weights."""
    import transformers

    return identity(source), CONVERTER, transformers.__version__


def convert(file: Path, into: Path, label: str) -> None:
    """Dequantize a GGUF file to fp32 and save it the way transformers does."""
    import_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, gguf = file.parent, file.name
    with track(f"{label}: convert {gguf}"), without_bars(), _without_reader_bar():
        with _explaining(gguf):
            check_fits(_header(file), torch.float32, "cpu", _HEADROOM)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
            module = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=gguf, dtype=torch.float32, trust_remote_code=False
            )
        _forget_quantization(module)
        module.save_pretrained(into)
        tokenizer.save_pretrained(into)


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise SourceError(f"{name} cannot be read as GGUF: {error}") from error


@contextmanager
def _without_reader_bar() -> Iterator[None]:
    """No bar of transformers' GGUF reader, which its own switch does not reach."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar, reader.tqdm = reader.tqdm, lambda tensors, **options: tensors
    try:
        yield
    finally:
        reader.tqdm = bar


def _forget_quantization(module: PreTrainedModel) -> None:
    """Drop transformers' mark that the weights were quantized: they no longer are.

    With it, saving and quantizing anew are refused.
    """
    module.is_quantized = False
    module.hf_quantizer = None
    marks = ((module, "quantization_method"), (module.config, "quantization_config"))
    for owner, name in marks:
        if hasattr(owner, name):
            delattr(owner, name)
