"""Documents as tokens, made once for each tokenizer and kept in the cache: a text of 2.5 MB takes
longer to be cut into tokens than its first windows take to be scored."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.sources.cache import once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AREA = "tokens"
FILE = "tokens.json"


def encode(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], label: str
) -> list[list[int]]:
    """The tokens of each document, without special ones.

    An entry is keyed by all that a tokenizer of the `tokenizers` library is made of, and by the
    text. Other tokenizers do not say what they are made of: they are asked each time.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _encode(tokenizer, documents)
    text = hashlib.sha256(json.dumps(list(documents)).encode()).hexdigest()
    made_of = hashlib.sha256(backend.to_str().encode()).hexdigest()
    versions = [f"{name} {version(name)}" for name in ("tokenizers", "transformers")]

    def build(folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(_encode(tokenizer, documents)), "utf-8")

    folder = once(AREA, made_of, text, *versions, build=build, label=label)
    try:
        found: list[list[int]] = json.loads((folder / FILE).read_text("utf-8"))
    except (OSError, ValueError):  # damaged: away with it, the next one who asks builds it again
        shutil.rmtree(folder, ignore_errors=True)
        return _encode(tokenizer, documents)
    return found


def _encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> list[list[int]]:
    encoded: Any = tokenizer(list(documents), add_special_tokens=False, verbose=False)
    tokens: list[list[int]] = encoded["input_ids"]
    return tokens
