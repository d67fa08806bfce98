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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.kernels.served import Served
from bitgate.measure.perplexity import BaseScores, likeliest, scored_rows, spans
from bitgate.sources import SourceError, Windows, cache_directory, once, track

if TYPE_CHECKING:
    from torch import Tensor

AREA = "base-scores"
FORMAT = 1
FILE = "scores.safetensors"
HEADER = 512  #: bytes at the front of a file, at most


def cap_bytes() -> int:
    """The size that all entries together may have."""
    wanted = os.environ.get("BITGATE_BASE_CACHE_GIB", "8")
    try:
        return int(float(wanted) * 2**30)
    except (ValueError, OverflowError):
        raise SourceError(f"BITGATE_BASE_CACHE_GIB: expected GiB, got {wanted!r}") from None


class LiveScores:
    """Scores from the base itself."""

    def __init__(self, base: Served) -> None:
        self.base = base

    def scores(self, windows: Windows, start: int, stop: int) -> BaseScores:
        import torch

        logits = self.base.logits(windows.tokens[start:stop])
        nll, top1, kept = [], [], []
        for window in range(start, stop):
            of_targets = []
            for log_probs, targets in scored_rows(logits, windows, start, window):
                of_targets.append(log_probs.gather(1, targets[:, None])[:, 0])
                top1.append(likeliest(log_probs))
                kept.append(log_probs.clone())
            nll.append(-torch.cat(of_targets).double().sum())
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
        from safetensors import SafetensorError

        step = next(spans(windows))[1]
        if self._bytes(windows, 0, len(windows)) > cap_bytes():
            return self.live.scores(windows, start, stop)
        key = [f"{k}={v}" for k, v in sorted(self.identity.items())]
        key += [f"text={windows.fingerprint}", f"step={step}", f"format={FORMAT}", f"at={start}"]

        def build(folder: Path) -> None:
            make_room(self._bytes(windows, start, stop))
            with track(f"scoring the base, windows {start} to {stop - 1}"):
                _write(folder / FILE, self.live.scores(windows, start, stop))

        folder = once(AREA, *key, build=build, label="base scores")
        try:
            os.utime(folder)  # used now: the last to be evicted
            return _read(folder / FILE)
        except FileNotFoundError:  # another process made room just now
            shutil.rmtree(folder, ignore_errors=True)
            return self.live.scores(windows, start, stop)
        except SafetensorError:  # damaged: away with it, the next one who asks builds it again
            shutil.rmtree(folder, ignore_errors=True)
            return self.live.scores(windows, start, stop)

    def _bytes(self, windows: Windows, start: int, stop: int) -> int:
        """What the scores of these windows take, as `_write` writes them."""
        rows = int((windows.tokens.shape[1] - windows.scored[start:stop]).sum())
        return rows * (2 * self.vocabulary + 8) + 8 * (stop - start) + HEADER


def make_room(needed: int) -> None:
    """Drop the least recently used entries until `needed` bytes fit under the cap."""
    area = cache_directory() / AREA
    entries = []
    for file in area.glob(f"*/{FILE}"):
        with suppress(OSError):  # another process may make room too
            if file.parent.suffix != ".tmp":  # which is still being built
                entries.append((file.parent.stat().st_mtime, file.stat().st_size, file.parent))
    total = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if total + needed <= cap_bytes():
            return
        # renamed first, so that an entry is there whole or not at all
        gone = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        try:
            folder.rename(gone)
        except OSError:  # someone reads it, or has removed it
            continue
        shutil.rmtree(gone, ignore_errors=True)
        total -= size


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
