"""Windows: the protocol of a text's perplexity, checked by its properties."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgate.catalog import Dataset
from bitgate.sources.errors import SourceError
from bitgate.sources.windows import cut, windows

BOS = 10**6


def dataset(**changes) -> Dataset:
    source = {"kind": "local", "path": "unused"}
    fields = {"name": "text", "source": source, "format": "plain", "tokens": 1, "window": 8}
    return Dataset.model_validate({**fields, **changes})


@st.composite
def protocols(draw):
    window = draw(st.integers(2, 12))
    return dataset(
        window=window,
        stride=draw(st.none() | st.integers(1, window)),
        seed=draw(st.integers(0, 3)),
        tokens_limit=draw(st.sampled_from((1, 20, 10**6))),
    )


def texts_of(lengths):
    """Documents in which every token is unique, so that its place is known."""
    start, texts = 0, []
    for length in lengths:
        texts.append(list(range(start, start + length)))
        start += length
    return texts


@settings(deadline=None, max_examples=150)
@given(protocols(), st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_properties(protocol, lengths, with_bos):
    texts = texts_of(lengths)
    bos = BOS if with_bos else None
    if not any(len(text) >= protocol.window for text in texts):
        with pytest.raises(SourceError, match="too short"):
            cut(protocol, texts, bos)
        return
    result = cut(protocol, texts, bos)
    width = protocol.window + with_bos
    assert result.tokens.shape == (len(result), width)
    scored: list[int] = []
    for row, first, document in zip(
        result.tokens.tolist(), result.scored.tolist(), result.document.tolist(), strict=True
    ):
        if with_bos:
            assert row.pop(0) == BOS
        assert all(b - a == 1 for a, b in pairwise(row)), "a window is one piece of text"
        assert set(row) <= set(texts[document]), "and lies within its document"
        assert first >= 1, "nothing predicts the very first token"
        scored += row[first - with_bos :]
    if (protocol.stride or protocol.window) < protocol.window or with_bos:
        assert len(scored) == len(set(scored)), "no token is scored twice"
    assert result.scored_tokens == len(scored)
    limit = protocol.tokens_limit
    assert len(scored) - width < limit, "no more windows than the limit takes"
    if limit == 10**6 and with_bos:  # then all but the partial tails is scored
        stride = protocol.stride or protocol.window
        whole = [len(t) - (len(t) - protocol.window) % stride for t in texts]
        expected = [w for t, w in zip(texts, whole, strict=True) if len(t) >= protocol.window]
        assert len(scored) == sum(expected)


@settings(deadline=None, max_examples=30)
@given(protocols())
def test_the_order_is_the_same_every_time(protocol):
    texts = texts_of([40, 40, 40])
    assert cut(protocol, texts, None).fingerprint == cut(protocol, texts, None).fingerprint


def test_the_first_windows_sample_many_documents():
    result = cut(dataset(tokens_limit=10**6), texts_of([80] * 20), None)
    assert len(set(result.document[:20].tolist())) >= 10


def test_the_seed_changes_the_order_and_fingerprint():
    texts = texts_of([80] * 4)
    results = [cut(dataset(tokens_limit=10**6, seed=seed), texts, None) for seed in (0, 1)]
    assert results[0].fingerprint != results[1].fingerprint
    assert sorted(results[0].tokens.tolist()) == sorted(results[1].tokens.tolist())


def test_by_default_twice_the_tokens():
    result = cut(dataset(tokens=70), texts_of([10_000]), None)
    assert len(result) == 20  # of 7 scored tokens each


def test_too_short_says_what_was_found():
    with pytest.raises(SourceError, match=r"dataset.*|too short: 7 tokens .* 100 are asked for"):
        cut(dataset(tokens=100), texts_of([9]), None)


class Letters:
    """A tokenizer of single letters."""

    bos_token_id = None

    def __call__(self, texts, add_special_tokens, verbose):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def test_a_tokenizer_without_bos_is_an_error_only_if_bos_is_asked_for():
    assert len(windows(dataset(), Letters(), ["a" * 100])) == 1
    with pytest.raises(SourceError, match=r"^dataset text: bos: "):
        windows(dataset(bos=True), Letters(), ["a" * 100])


# --- texts that must not meet ----------------------------------------------------------------


class Words:
    """A tokenizer of documents that are numbers."""

    bos_token_id = BOS

    def __call__(self, documents, **_):
        return {"input_ids": [[int(word) for word in text.split()] for text in documents]}


@settings(deadline=None, max_examples=100)
@given(protocols(), protocols(), st.lists(st.integers(0, 80), min_size=1, max_size=5))
def test_what_is_avoided_is_never_touched(one, other, lengths):
    documents = [" ".join(map(str, text)) for text in texts_of(lengths)]
    try:
        scored = windows(other, Words(), documents)
        mine = windows(one.model_copy(update={"avoid": (other,)}), Words(), documents)
    except SourceError:
        return  # nothing is left to draw
    assert not set(mine.tokens.flatten().tolist()) & set(scored.tokens.flatten().tolist())


def test_what_avoids_nothing_is_drawn_as_ever():
    documents = [" ".join(map(str, text)) for text in texts_of([60, 80, 40])]
    other = dataset(tokens_limit=10)
    alone, apart = (
        windows(dataset(avoid=avoided, tokens_limit=30), Words(), documents)
        for avoided in ((), (other,))
    )
    # the order is the same, without those that are taken
    taken = {tuple(row) for row in windows(other, Words(), documents).tokens.tolist()}
    order = [tuple(row) for row in alone.tokens.tolist() if tuple(row) not in taken]
    assert [tuple(row) for row in apart.tokens.tolist()][: len(order)] == order
