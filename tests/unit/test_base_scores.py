"""The cache of the base's scores: what it gives back, what names an entry, what makes room."""

import math
import os
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from bitgate.measure import base_scores, perplexity
from bitgate.measure.base import BaseModel
from bitgate.measure.base_scores import AREA, FILE, CachedScores, LiveScores, cap_bytes, make_room
from bitgate.measure.perplexity import paired_scores, spans
from bitgate.sources import SourceError, once

MIB = 2**20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The entries' folder, in a cache of this test's own."""
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    monkeypatch.delenv("BITGATE_BASE_CACHE_GIB", raising=False)
    return tmp_path / AREA


@pytest.fixture
def cap(monkeypatch):
    """Sets the cap in bytes."""
    return lambda size: monkeypatch.setenv("BITGATE_BASE_CACHE_GIB", repr(size / 2**30))


class Counting(LiveScores):
    """Live scores that say what was asked of the base."""

    def __init__(self, base):
        super().__init__(base)
        self.asked = []

    def scores(self, windows, start, stop):
        self.asked.append((start, stop))
        return super().scores(windows, start, stop)


@pytest.fixture
def live(llama, served):
    return Counting(served(llama()))


@pytest.fixture
def text(random_text):
    """Three passes of 64 windows, 0.5 MiB of scores each."""
    return random_text(documents=(16 * 192,))


IDENTITY = {"weights": "abc", "dtype": "float32"}


def cached(live, identity=IDENTITY):
    return CachedScores(live, identity, 256)


def entries(folder):
    return {path.name for path in folder.glob("*") if path.is_dir()}


def read_all(scores, text):
    return [scores.scores(text, start, stop) for start, stop in spans(text)]


# --- what it gives back --------------------------------------------------------------------


@pytest.fixture(scope="module")
def realistic(llama, hqq, served, execution):
    """As many tokens as SmolLM2 has; sure of some, with a long tail of improbable ones."""
    base = llama(vocab_size=49152, hidden_size=64, initializer_range=0.6)
    log_probs = served(base).logits(torch.arange(64)[None]).log_softmax(-1)
    likeliest = log_probs.amax(-1).exp()
    assert likeliest.max() > 0.9 > 0.3 > likeliest.min()
    assert log_probs.min() < -30
    return base, hqq(base, bits=3).serve(execution())


def test_cached_scores_are_the_live_ones(realistic, served, random_text, items_of, metrics_of):
    base, quantized = realistic
    text = random_text(vocabulary=49152, documents=(32 * 8,), window=32)
    live = Counting(served(base))
    found = {}
    for name, scores in (
        ("live", live),
        ("built", CachedScores(live, IDENTITY, 49152)),
        ("read", CachedScores(live, IDENTITY, 49152)),
    ):
        measurement = paired_scores(quantized, scores, text, 1)
        items = items_of(measurement)
        found[name] = items, metrics_of(measurement, items)
    assert live.asked == [(0, 8)] * 2, "once live and once for the cache"
    items, metrics = found["live"]
    assert metrics["kl_divergence"].value > 0.5
    for other in ("built", "read"):
        for column in ("base_nll", "nll", "same_top1", "tokens", "window"):
            assert (found[other][0][column] == items[column]).all(), column
        for name in ("perplexity", "base_perplexity", "perplexity_ratio", "top1_agreement"):
            assert found[other][1][name] == metrics[name]
        off = found[other][1]["kl_divergence"].value - metrics["kl_divergence"].value
        assert abs(off) < 1e-4


def test_a_small_divergence_stays_one(realistic, served, random_text, items_of, metrics_of):
    """The base beside itself: all that is seen is the rounding."""
    base, _ = realistic
    text = random_text(vocabulary=49152, documents=(32 * 8,), window=32)
    scores = CachedScores(LiveScores(served(base)), IDENTITY, 49152)
    measurement = paired_scores(served(base), scores, text, 1)
    metrics = metrics_of(measurement, items_of(measurement))
    assert abs(metrics["kl_divergence"].value) < 1e-4
    assert metrics["perplexity_ratio"].value == metrics["top1_agreement"].value == 1


def test_impossible_tokens_survive_half_precision(cache, served, llama, text):
    base = llama()
    masked = base.lm_head.weight
    masked[7] = 0

    class Masked(LiveScores):
        def scores(self, windows, start, stop):
            found = super().scores(windows, start, stop)
            log_probs = found.log_probs.clone()
            log_probs[:, 7] = -math.inf
            return found._replace(log_probs=log_probs)

    scores = cached(Masked(served(base))).scores(text, 0, 64)
    assert torch.isfinite(scores.log_probs).all()
    assert (scores.log_probs[:, 7].float().exp() == 0).all()


# --- what names an entry -------------------------------------------------------------------


def test_an_entry_is_used_again(live, text):
    first, again = read_all(cached(live), text), read_all(cached(live), text)
    assert live.asked == list(spans(text))
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_any_part_of_the_key_makes_another_entry(live, text, random_text, cache, monkeypatch):
    def ask(identity=IDENTITY, windows=text):
        cached(live, identity).scores(windows, 0, 64)
        return len(entries(cache))

    assert ask() == ask() == 1
    assert ask({**IDENTITY, "weights": "abd"}) == 2
    assert ask({**IDENTITY, "dtype": "float16"}) == 3
    assert ask({**IDENTITY, "more": "1"}) == 4
    assert ask(windows=random_text(documents=(16 * 192,), seed=1)) == 5
    assert ask(windows=random_text(documents=(16 * 192,), stride=8)) == 6
    assert ask(windows=replace(text, fingerprint="scored otherwise")) == 7
    cached(live).scores(text, 64, 128)
    assert len(entries(cache)) == 8
    monkeypatch.setattr(base_scores, "FORMAT", 2)
    assert ask() == 9
    monkeypatch.setattr(perplexity, "TOKENS_PER_BATCH", 2048)
    assert ask() == 10


def test_the_identity_of_a_base(llama, execution):
    make = execution("torch", dtype="bfloat16", device="cpu")
    base = BaseModel(llama(), make, "fingerprint of the weights")
    assert base.identity == {
        "weights": "fingerprint of the weights",
        "device": "cpu",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    assert base.vocabulary == 256


# --- what makes room -----------------------------------------------------------------------


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob(FILE))


def test_the_size_is_known_beforehand(live, text, random_text, cache):
    for windows in (text, random_text(documents=(16 * 40,), stride=5)):
        start, stop = next(spans(windows))
        before = size_of(cache) if cache.exists() else 0
        cached(live).scores(windows, start, stop)
        predicted = cached(live)._bytes(windows, start, stop)
        assert predicted - 512 < size_of(cache) - before <= predicted


def age(folder, known, seconds):
    """Date the entries that are new since `known`, in seconds ago; returns all there are."""
    now = entries(folder)
    for name in now - known:
        stamp = folder.stat().st_mtime - seconds
        os.utime(folder / name, (stamp, stamp))
    return now


def test_the_least_recently_used_makes_room(live, random_text, cache, cap):
    texts = [random_text(documents=(16 * 64,), seed=seed) for seed in range(4)]
    one = cached(live)._bytes(texts[0], 0, 64)
    cap(3 * one)
    known = set()
    by_text = []
    for number, text in enumerate(texts[:3]):
        cached(live).scores(text, 0, 64)
        new = entries(cache) - known
        by_text += new
        known = age(cache, known, 100 - number)
    assert len(known) == 3
    cached(live).scores(texts[0], 0, 64)  # used: now the second is the oldest
    assert live.asked == [(0, 64)] * 3
    cached(live).scores(texts[3], 0, 64)
    assert by_text[0] in entries(cache)
    assert by_text[1] not in entries(cache)
    assert by_text[2] in entries(cache)
    assert len(entries(cache)) == 3
    assert size_of(cache) <= 3 * one
    assert not list(cache.glob("*.tmp"))


def test_the_cap_holds_while_a_text_is_read(live, random_text, cache, cap):
    cap(2 * MIB)
    for seed in range(3):  # 1.5 MiB each
        read_all(cached(live), random_text(documents=(16 * 192,), seed=seed))
        assert 0 < size_of(cache) <= 2 * MIB


def test_what_does_not_fit_at_all_is_scored_live(live, text, cache, cap):
    cap(cached(live)._bytes(text, 0, len(text)) - 1)
    expected = read_all(LiveScores(live.base), text)
    for _ in range(2):
        found = read_all(cached(live), text)
        for a, b in zip(found, expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert live.asked == list(spans(text)) * 2
    assert not cache.exists()


def test_no_cache_at_all(live, text, cache, cap):
    cap(0)
    read_all(cached(live), text)
    assert not cache.exists()


def test_room_is_not_made_of_entries_being_built(live, text, cache, cap):
    """Another process is writing one: its folder is no entry yet."""
    building = cache / "0123.tmp"
    building.mkdir(parents=True)
    (building / FILE).write_bytes(b"half")
    cap(1)
    make_room(10**9)
    assert (building / FILE).exists()


@pytest.mark.parametrize("value", ["8GB", "", "inf"])
def test_a_cap_that_is_no_number(monkeypatch, value):
    monkeypatch.setenv("BITGATE_BASE_CACHE_GIB", value)
    with pytest.raises(SourceError, match=f"BITGATE_BASE_CACHE_GIB: expected GiB, got '{value}'"):
        cap_bytes()


# --- other processes, and failures ---------------------------------------------------------


def test_an_entry_evicted_just_now_is_scored_live(live, text, monkeypatch):
    def vanishing(*args, **options):
        folder = once(*args, **options)
        make_room(10**18)  # by another process, before this one reads
        return folder

    expected = LiveScores(live.base).scores(text, 0, 64)
    monkeypatch.setattr(base_scores, "once", vanishing)
    found = cached(live).scores(text, 0, 64)
    assert live.asked == [(0, 64)] * 2
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_an_entry_evicted_between_looking_and_reading(live, text, monkeypatch):
    utime = os.utime

    def vanishing(path, *args):
        utime(path, *args)
        make_room(10**18)

    monkeypatch.setattr(base_scores.os, "utime", vanishing)
    assert cached(live).scores(text, 0, 64).log_probs.dtype == torch.float32, "live"


def test_a_damaged_entry_is_scored_live_and_built_again(live, text, cache):
    expected = cached(live).scores(text, 0, 64)
    (file,) = cache.rglob(base_scores.FILE)
    whole = file.read_bytes()
    file.unlink()  # what was read stays mapped into memory
    file.write_bytes(whole[: len(whole) // 2])
    assert cached(live).scores(text, 0, 64).log_probs.dtype == torch.float32, "live"
    assert all(
        torch.equal(x, y) for x, y in zip(cached(live).scores(text, 0, 64), expected, strict=True)
    )
    assert file.read_bytes() == whole


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failing_build_leaves_nothing(live, text, cache, monkeypatch, error):
    def fail(path, scores):
        path.write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(base_scores, "_write", fail)
        with pytest.raises(type(error)):
            cached(live).scores(text, 0, 64)
    assert entries(cache) == set()
    cached(live).scores(text, 0, 64)
    assert len(entries(cache)) == 1
