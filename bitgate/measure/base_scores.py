"""The base's scores of a text, computed once and kept on disk.

An entry is keyed by everything that can change it: weights, text and protocol, dtype, device,
versions, and the batches it is scored in. Log-probabilities are kept as float16, whose rounding
moves a KL divergence by less than 1e-4 nat (tests/unit/test_base_scores.py); the likeliest token
is kept beside them, as rounding makes ties. The cache has a cap, BITGATE_BASE_CACHE_GIB (8); the
least recently used entries make room, and what does not fit at all is scored live. A base's speed
is never kept.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.kernels.served import Served
from bitgate.measure.perplexity import BaseScores, scored_rows, spans
from bitgate.sources import Windows, cache_directory, once, track

if TYPE_CHECKING:
    from torch import Tensor

AREA = "base-scores"
FORMAT = 1
FILE = "scores.safetensors"


def cap_bytes() -> int:
    """The size that all entries together may have."""
    return int(float(os.environ.get("BITGATE_BASE_CACHE_GIB", "8")) * 2**30)


class LiveScores:
    """Scores from the base itself."""

    def __init__(self, base: Served) -> None:
        self.base = base

    def scores(self, windows: Windows, start: int, stop: int) -> BaseScores:
        import torch

        logits = self.base.logits(windows.tokens[start:stop])
        nll, top1, kept = [], [], []
        for window in range(start, stop):
            log_probs, targets = scored_rows(logits, windows, start, window)
            nll.append(-log_probs.gather(1, targets[:, None]).double().sum())
            top1.append(log_probs.argmax(-1))
            kept.append(log_probs)
        return BaseScores(torch.stack(nll), torch.cat(top1), torch.cat(kept))


class CachedScores:
    """Scores from the cache, where missing ones are put by `live`.

    `identity` says what the base is: the fingerprint of its weights and how it is executed.
    """

    def __init__(self, live: LiveScores, identity: dict[str, str], vocabulary: int) -> None:
        self.live = live
        self.identity = identity
        self.vocabulary = vocabulary

    def scores(self, windows: Windows, start: int, stop: int) -> BaseScores:
        step = next(spans(windows))[1]
        rows = windows.scored_tokens * self.vocabulary * 2
        if rows > cap_bytes():
            return self.live.scores(windows, start, stop)
        key = [f"{k}={v}" for k, v in sorted(self.identity.items())]
        key += [f"text={windows.fingerprint}", f"step={step}", f"format={FORMAT}", f"at={start}"]

        def build(folder: Path) -> None:
            make_room(rows * (stop - start) // len(windows))
            with track(f"scoring the base, windows {start} to {stop - 1}"):
                _write(folder / FILE, self.live.scores(windows, start, stop))

        folder = once(AREA, *key, build=build, label="base scores")
        try:
            os.utime(folder)  # used now: the last to be evicted
            return _read(folder / FILE)
        except FileNotFoundError:  # another process made room just now
            return self.live.scores(windows, start, stop)


def make_room(needed: int) -> None:
    """Drop the least recently used entries until `needed` bytes fit under the cap."""
    area = cache_directory() / AREA
    entries = [path for path in area.glob("*") if path.is_dir()] if area.is_dir() else []
    sizes = {path: _size(path) for path in entries}
    total = sum(sizes.values())
    for path in sorted(entries, key=_last_use):
        if total + needed <= cap_bytes():
            return
        if (path / FILE).exists():  # else it is being built
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _write(path: Path, scores: BaseScores) -> None:
    import torch
    from safetensors.torch import save_file

    # float16 reaches -65504: below that a probability is zero in any precision
    kept = scores.log_probs.clamp(min=-60000).to(torch.float16)
    save_file({"nll": scores.nll, "top1": scores.top1, "log_probs": kept}, path)


def _read(path: Path) -> BaseScores:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return BaseScores(**tensors)
