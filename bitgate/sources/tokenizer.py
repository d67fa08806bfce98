"""A model's tokenizer: where it is read from, and what it is made of."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from bitgate.sources.errors import SourceError
from bitgate.sources.imports import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: settings of a call, which the `tokenizers` library keeps in the tokenizer until the next one
_OF_THE_LAST_CALL = ("truncation", "padding")
#: one that is made of 49,000 pieces takes a tenth of a second to say so
_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def read_tokenizer(directory: Path | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a directory, if it has one."""
    import_transformers()
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    patterns = ("tokenizer*", "vocab.*", "*.model")
    if directory is None or not any(any(directory.glob(pattern)) for pattern in patterns):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"{directory}: its tokenizer cannot be loaded: {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def made_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that changes with the tokens that a text is cut into; found once for each tokenizer.

    Of one that is not of the `tokenizers` library only the class and the vocabulary are known.
    """
    if tokenizer not in _known:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            content: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
        else:
            whole = json.loads(backend.to_str())
            content = [version("tokenizers"), {**whole, **dict.fromkeys(_OF_THE_LAST_CALL)}]
        told = json.dumps([content, tokenizer.truncation_side])
        _known[tokenizer] = hashlib.sha256(told.encode()).hexdigest()
    return _known[tokenizer]
