"""How likely a model finds continuations of contexts, by whatever serves it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bitgate.kernels.served import Served, TorchServed

if TYPE_CHECKING:
    from torch import Tensor

#: tokens that are read in one forward pass where contexts are not shared
TOKENS_AT_ONCE = 1024

#: tokens of a context and of what continues it, neither without any
Request = tuple[Sequence[int], Sequence[int]]


class TooLongError(ValueError):
    """A continuation does not fit into the model's context."""


class Answer(NamedTuple):
    """What a model says of a continuation."""

    log_likelihood: float  #: of all its tokens after the context, in nats
    greedy: bool  #: whether each of them is the likeliest


def score(served: Served, requests: Sequence[Request]) -> list[Answer]:
    """An answer to each request.

    A context that several requests share is read once, where torch serves the model; what is longer
    than the model's context loses tokens from the left, as in lm-eval.

    Raises:
        TooLongError: if a continuation alone is longer.
    """
    kept = [_cut(request, served.context) for request in requests]
    rows = _branched(served, kept) if _can_branch(served) else _whole(served, kept)
    return [_answer(row, kept[at][1]) for at, row in enumerate(rows)]


def _cut(request: Request, limit: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    context, continuation = map(tuple, request)
    # the last token of all is predicted, and not read
    if limit is not None and len(context) + len(continuation) - 1 > limit:
        room = limit + 1 - len(continuation)
        if room < 1:
            raise TooLongError(
                f"a continuation of {len(continuation)} tokens does not fit into the model's "
                f"context of {limit}"
            )
        context = context[-room:]
    return context, continuation


def _answer(logits: Tensor, continuation: Sequence[int]) -> Answer:
    """`logits` [tokens, vocabulary] at the places that predict the continuation's tokens."""
    import torch

    with torch.inference_mode():
        targets = torch.tensor(continuation, device=logits.device)
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        found = log_probs.gather(1, targets[:, None])
        return Answer(float(found.sum()), bool((logits.argmax(-1) == targets).all()))


def _can_branch(served: Served) -> bool:
    if not isinstance(served, TorchServed):
        return False
    takes = inspect.signature(served.module.forward).parameters
    return {"position_ids", "past_key_values", "logits_to_keep"} <= takes.keys()


def _branched(served: Served, requests: Sequence[Request]) -> list[Tensor]:
    """Contexts once, padded at the left; then all continuations beside each other, padded at the
    right, where nothing that counts looks."""
    import torch
    from transformers import DynamicCache

    assert isinstance(served, TorchServed)
    contexts = list(dict.fromkeys(tuple(context) for context, _ in requests))
    place = {context: at for at, context in enumerate(contexts)}
    owners = torch.tensor([place[tuple(context)] for context, _ in requests])
    lengths = torch.tensor([len(context) for context in contexts])
    longest = int(lengths.max())
    device = served.execution.device
    tokens = torch.zeros(len(contexts), longest, dtype=torch.long)
    for row, context in zip(tokens, contexts, strict=True):
        row[longest - len(context) :] = torch.tensor(context)
    mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=served.module.config)
    with torch.inference_mode():
        first = served.module(
            tokens.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        more = max(len(continuation) for _, continuation in requests) - 1
        if not more:
            return [first[owner] for owner in owners]
        cache.batch_select_indices(owners.to(device))
        tokens = torch.zeros(len(requests), more, dtype=torch.long)
        for row, (_, continuation) in zip(tokens, requests, strict=True):
            row[: len(continuation) - 1] = torch.tensor(continuation[:-1], dtype=torch.long)
        after = torch.cat([mask[owners], torch.ones_like(tokens)], dim=1)
        later = served.module(
            tokens.to(device),
            attention_mask=after.to(device),
            position_ids=(lengths[owners][:, None] + torch.arange(more)).to(device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        return [
            torch.cat([first[owner], later[at, : len(continuation) - 1]])
            for at, (owner, (_, continuation)) in enumerate(zip(owners, requests, strict=True))
        ]


def _whole(served: Served, requests: Sequence[Request]) -> list[Tensor]:
    """Each context with its continuation, some at a time, padded at the right."""
    import torch

    found: list[Tensor] = []
    rows = [(*context, *continuation[:-1]) for context, continuation in requests]
    at_once = max(1, TOKENS_AT_ONCE // max(map(len, rows)))
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        tokens = torch.zeros(len(some), max(map(len, some)), dtype=torch.long)
        for row, read in zip(tokens, some, strict=True):
            row[: len(read)] = torch.tensor(read)
        logits = served.logits(tokens)
        for at, read in enumerate(some):
            count = len(requests[start + at][1])
            found.append(logits[at, len(read) - count : len(read)].clone())
    return found
