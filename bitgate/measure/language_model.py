"""A language model as lm-eval asks it, answered by whatever scores continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bitgate.kernels.continuations import Answer, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Score = Callable[[Sequence[Request]], list[Answer]]


def language_model(score: Score, tokenizer: PreTrainedTokenizerBase) -> Any:
    """An `lm_eval.api.model.LM` whose `loglikelihood` is that of `score`; texts become tokens as in
    lm-eval's own model for transformers. It generates nothing."""
    from lm_eval.api.model import TemplateLM

    class LanguageModel(TemplateLM):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            """Stands before a continuation without a context."""
            first = tokenizer.bos_token_id
            return int(tokenizer.eos_token_id if first is None else first)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            first = tokenizer.bos_token
            if add_special_tokens is None and first is not None and string.startswith(first):
                given = {"add_special_tokens": False}  # it is not put there twice
            found: list[int] = tokenizer.encode(string, **given)
            return found

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            return [
                (answer.log_likelihood, answer.greedy)
                for answer in score([(context, rest) for _, context, rest in requests])
            ]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("perplexity of whole texts is the kind perplexity")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError("text that is generated is the kind rouge")

    return LanguageModel()
