"""Documents to be summarized: the prompt for each, and what its summary is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitgate.catalog import RougeWorkload
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.overlap import shares_words, word_runs
from bitgate.sources.task_items import sentences
from bitgate.sources.text import load_documents, load_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bitgate.sources.models import LoadedModel


@dataclass(frozen=True)
class Prompts:
    """Documents in the order in which they are drawn."""

    names: tuple[str, ...]  #: a hash of each document's text
    tokens: tuple[tuple[int, ...], ...]  #: of the prompt for each
    references: tuple[str, ...] | None
    ends: frozenset[int]  #: tokens by which a model ends its answer
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return len(self.names)

    def read(self, output: Sequence[int]) -> str:
        """The text of an answer's tokens, up to the end that the model set itself."""
        end = next((at for at, token in enumerate(output) if token in self.ends), len(output))
        text: str = self.tokenizer.decode(list(output[:end]), skip_special_tokens=True)
        return text.strip()


def load_prompts(workload: RougeWorkload, model: LoadedModel, seen: Sequence[str] = ()) -> Prompts:
    """The prompts for the workload's documents; for none that shares text with `seen`.

    Raises:
        SourceError: if there are too few documents, or a record has only one of document and
            reference.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise SourceError(f"rouge {workload.name}: tokenizer: the model has none to read text with")
    with blaming(f"rouge {workload.name}"):
        chosen = _chosen(workload, seen)
        return Prompts(
            names=tuple(_digest(text)[:16] for text, _ in chosen),
            tokens=tuple(_prompt(tokenizer, workload.prompt, text) for text, _ in chosen),
            references=None if workload.reference == "none" else tuple(r for _, r in chosen),
            ends=_ends(model.module, tokenizer),
            tokenizer=tokenizer,
        )


def _chosen(workload: RougeWorkload, seen: Sequence[str]) -> list[tuple[str, str]]:
    """Texts and references; different texts in an order of hashes."""
    runs = word_runs(seen)
    found: dict[str, str] = {}
    for document, reference in _documents(workload):
        text = opening(document, workload.characters)
        if text and not shares_words(text, runs):
            found.setdefault(text, reference)
    if len(found) < workload.limit:
        raise SourceError(
            f"too few: dataset {workload.dataset.name} has {len(found)} documents whose first "
            f"sentence has at most {workload.characters} characters, {workload.limit} are asked "
            "for; lower `documents` or `documents_limit`, or raise `characters`"
        )
    drawn = sorted(found.items(), key=lambda item: _digest(f"{workload.seed}/{item[0]}"))
    return drawn[: workload.limit]


def opening(document: str, characters: int) -> str:
    """A document's first sentences, as many as fit into so many characters; perhaps none."""
    text = ""
    for sentence in sentences(" ".join(document.split())):
        longer = f"{text} {sentence}".strip()
        if len(longer) > characters:
            break
        text = longer
    return text


def _documents(workload: RougeWorkload) -> list[tuple[str, str]]:
    """Documents, each with its reference, or its first sentence."""
    if workload.reference_column is not None:
        return load_pairs(workload.dataset, workload.reference_column)
    documents = load_documents(workload.dataset)
    return [(document, sentences(" ".join(document.split()))[0]) for document in documents]


def _prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> tuple[int, ...]:
    """In the tokenizer's chat template, if it has one."""
    asked: str = prompt.replace("{text}", text)
    if getattr(tokenizer, "chat_template", None):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
        )
        return tuple(tokenizer.encode(asked, add_special_tokens=False))
    return tuple(tokenizer.encode(asked))


def _ends(module: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found = [tokenizer.eos_token_id]
    ids = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    found += ids if isinstance(ids, (list, tuple)) else [ids]
    return frozenset(token for token in found if token is not None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
