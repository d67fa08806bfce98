"""Texts that share tokens, whatever they are called."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgate.sources import shared_run


@pytest.fixture(scope="module")
def other(random_text):
    return random_text(seed=1, window=96, documents=(500,))


def test_other_text_shares_nothing(random_text, other):
    assert shared_run(random_text(seed=2, window=128, documents=(500,)), other) is None


def test_the_same_text_in_other_windows_is_seen(random_text):
    one = random_text(seed=1, window=96, documents=(500,))
    shifted = random_text(seed=1, window=128, stride=128, documents=(500,))
    run = shared_run(one, shifted)
    assert len(run) == 64
    assert any(
        window[start : start + 64] == run
        for window in shifted.tokens.tolist()
        for start in range(65)
    )


def test_a_run_must_be_long(random_text, other):
    """A phrase that both have is no copy."""
    changed = random_text(seed=2, window=96, documents=(500,))
    for common, found in ((63, False), (64, True)):
        changed.tokens[2, 10 : 10 + common] = other.tokens[1, 20 : 20 + common]
        assert (shared_run(changed, other) is not None) == found


def test_short_windows_are_compared_whole(random_text):
    one, other = random_text(seed=1, window=16), random_text(seed=2, window=24)
    assert shared_run(one, other) is None
    other.tokens[3, 5:21] = one.tokens[4]
    assert shared_run(one, other) == one.tokens[4].tolist()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 4), st.integers(0, 32), st.integers(0, 4), st.integers(0, 64))
def test_it_is_found_wherever_it_stands(random_text, first, start, second, at):
    one = random_text(seed=1, window=96, documents=(500,))
    other = random_text(seed=2, window=128, documents=(700,))
    run = one.tokens[first, start : start + 64]
    other.tokens[second, at : at + 64] = run
    found = shared_run(one, other)
    # a token beside it may be the same by chance: then the run begins there
    for text, row, place in ((one, first, start), (other, second, at)):
        window = text.tokens[row].tolist()
        begins = [at for at in range(len(window) - 63) if window[at : at + 64] == found]
        assert any(abs(begin - place) < 8 for begin in begins)
