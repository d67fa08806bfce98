"""Documents as tokens: made once for each tokenizer and text."""

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from bitgate.sources.tokens import AREA, FILE, encode

DOCUMENTS = ["a b a", "", "b c"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The entries' folder, in a cache of this test's own."""
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    return tmp_path / AREA


class Counting(PreTrainedTokenizerFast):
    """A tokenizer of the `tokenizers` library that says how often it was asked."""

    asked = 0

    def __call__(self, *args, **options):
        self.asked += 1
        return super().__call__(*args, **options)


def by_word(*words):
    known = {word: number for number, word in enumerate(("?", *words))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Counting(tokenizer_object=backend)


class Slow:
    """A tokenizer of single letters, which does not say what it is made of."""

    asked = 0

    def __call__(self, documents, **options):
        self.asked += 1
        return {"input_ids": [[ord(letter) for letter in text] for text in documents]}


def test_a_text_is_cut_into_tokens_once(cache):
    first, second = by_word("a", "b"), by_word("a", "b")
    expected = [[1, 2, 1], [], [2, 0]]
    assert encode(first, DOCUMENTS, "text") == expected
    assert encode(second, DOCUMENTS, "text") == expected
    assert (first.asked, second.asked) == (1, 0)


def test_another_tokenizer_or_text_is_another_entry(cache):
    encode(by_word("a", "b"), DOCUMENTS, "text")
    assert encode(by_word("b", "a"), DOCUMENTS, "text") == [[2, 1, 2], [], [1, 0]]
    assert encode(by_word("a", "b"), ["a b", "a", "b c"], "text") == [[1, 2], [1], [2, 0]]
    assert encode(by_word("a", "b"), ["a b a b c"], "text") == [[1, 2, 1, 2, 0]]
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 4


def test_a_damaged_entry_is_made_again(cache):
    expected = encode(by_word("a", "b"), DOCUMENTS, "text")
    (file,) = cache.rglob(FILE)
    whole = file.read_text()
    file.write_text(whole[:5])
    assert encode(by_word("a", "b"), DOCUMENTS, "text") == expected
    assert encode(by_word("a", "b"), DOCUMENTS, "text") == expected
    assert file.read_text() == whole


def test_a_tokenizer_that_does_not_say_what_it_is_made_of_is_asked_each_time(cache):
    slow = Slow()
    for asked in (1, 2):
        assert encode(slow, ["ab", ""], "text") == [[97, 98], []]
        assert slow.asked == asked
    assert not cache.exists()
