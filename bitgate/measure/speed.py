"""Speed of generation: base and quantized model take turns, so that what disturbs the machine
disturbs both.

A timed step is long enough (50 ms) that being pre-empted once does not double it. Pairs run
AB BA AB, which cancels drift; their ratio is what is judged. Absolute times are recorded for the
reader and never compared across machines.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain, islice
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from bitgate import statistics
from bitgate.catalog import PhaseWorkload
from bitgate.kernels.served import Served
from bitgate.measure.measurement import Batch
from bitgate.measure.packing import packed_layers
from bitgate.metric import Interval, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from bitgate.measure.measurement import Items

#: what to time of base and quantized model, and how many tokens each then handles
Pair = tuple[Callable[[], None], Callable[[], None], int]

SHORTEST_STEP = 0.05  #: seconds
LEAST_PAIRS = 8
PAIRS_PER_BATCH = 4
WARM_STEPS = 3
#: two runs of one thing differ by this much between processes, as a standard deviation of the
#: logarithm, until it is calibrated for the hardware: 5 to 10 % was seen for paired ratios, 45 %
#: for absolute times (docs/decisions/0004-speed.md)
RATIO_SPREAD = 0.05
TIME_SPREAD = 0.45


def paired_steps(
    quantized: Served,
    base: Served,
    workload: PhaseWorkload,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    limit: int = 200,
) -> PairedSteps:
    """Time decode steps, or prompts read, of both models in turn; at most `limit` pairs.

    `alone` is entered around all that is timed: whoever shares this machine waits meanwhile.
    """
    return PairedSteps(quantized, base, workload, alone, limit)


class PairedSteps:
    """One observation per pair: wall and CPU seconds of each side for `tokens` tokens each."""

    least = LEAST_PAIRS

    def __init__(
        self,
        quantized: Served,
        base: Served,
        workload: PhaseWorkload,
        alone: Callable[[], AbstractContextManager[None]],
        limit: int,
    ) -> None:
        self.quantized = quantized
        self.base = base
        self.workload = workload
        self.alone = alone
        self.limit = limit
        self.prompt = prompt_of(workload, base.vocabulary)

    def batches(self) -> Iterator[Batch]:
        decoding = self.workload.kind == "decode"
        pairs = self._decode_pairs() if decoding else self._prefill_pairs()
        first = next(pairs)  # compiled and warm, while others may still work
        with self.alone():
            yield from self._timed(chain([first], pairs))

    def _timed(self, pairs: Iterator[Pair]) -> Iterator[Batch]:
        rows: list[dict[str, Any]] = []
        for number, (run_base, run_quantized, tokens) in enumerate(islice(pairs, self.limit)):
            base_first = number % 2 == 0
            if base_first:
                base_wall, base_cpu = timed(run_base)
            wall, cpu = timed(run_quantized)
            if not base_first:
                base_wall, base_cpu = timed(run_base)
            rows.append(
                {
                    "pair": number,
                    "order": "AB" if base_first else "BA",
                    "tokens": tokens,
                    "base_seconds": base_wall,
                    "seconds": wall,
                    "base_cpu_seconds": base_cpu,
                    "cpu_seconds": cpu,
                }
            )
            if len(rows) == PAIRS_PER_BATCH:
                yield _batch(rows)
                rows = []
        if rows:
            yield _batch(rows)

    def _decode_pairs(self) -> Iterator[Pair]:
        steps = 0  # per timed step; found once the first steps are known
        room = self.workload.output
        while True:
            for served in (self.base, self.quantized):
                served.prefill(self.prompt, room)
            left = room
            if steps == 0:
                fastest = min(self._warm_step(served) for served in (self.base, self.quantized))
                left -= WARM_STEPS
                steps = max(1, math.ceil(SHORTEST_STEP / fastest))
                if steps > left:
                    raise ValueError(
                        f"workload {self.workload.name}: output: {room} tokens are too few for "
                        f"steps of {1000 * SHORTEST_STEP:g} ms; give at least {steps + WARM_STEPS}"
                    )
            while left >= steps:
                left -= steps
                yield (
                    partial(_decode, self.base, steps),
                    partial(_decode, self.quantized, steps),
                    steps * self.workload.batch,
                )

    def _warm_step(self, served: Served) -> float:
        """The shortest of a few first steps; a compiled model compiles in the first."""
        return min(
            timed(served.decode_step)[0] for _ in range(min(WARM_STEPS, self.workload.output))
        )

    def _prefill_pairs(self) -> Iterator[Pair]:
        for served in (self.base, self.quantized):
            served.prefill(self.prompt, 0)
        fastest = min(
            timed(partial(served.prefill, self.prompt, 0))[0]
            for served in (self.base, self.quantized)
        )
        times = max(1, math.ceil(SHORTEST_STEP / fastest))

        def read(served: Served) -> None:
            for _ in range(times):
                served.prefill(self.prompt, 0)

        while True:
            yield (
                partial(read, self.base),
                partial(read, self.quantized),
                times * self.prompt.numel(),
            )

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        import numpy as np

        base, own, tokens = (
            np.asarray(items[key], float) for key in ("base_seconds", "seconds", "tokens")
        )
        ratio = statistics.process_median(np.log(base / own), RATIO_SPREAD, level).exp()
        per_pass = (
            own
            / tokens
            * (self.workload.batch if self.workload.kind == "decode" else self.prompt.numel())
        )

        def widened(name: str, values: Any, scale: float = 1.0) -> Metric:
            e = statistics.process_median(np.log(values * scale), TIME_SPREAD, level).exp()
            return Metric(name, e.value, _interval(e, nominal))

        return [
            Metric("speedup", ratio.value, _interval(ratio, nominal)),
            widened("tokens_per_second", tokens / own),
            widened("base_tokens_per_second", tokens / base),
            widened("latency_ms", per_pass, 1000),
            packed_layers(self.quantized),
        ]


def _interval(estimate: statistics.Estimate, nominal: float) -> Interval:
    return Interval(estimate.low, estimate.high, nominal, estimate.method, "process", 1)


def _decode(served: Served, steps: int) -> None:
    for _ in range(steps):
        served.decode_step()


def _batch(rows: list[dict[str, Any]]) -> Batch:
    return Batch(
        [row["seconds"] for row in rows],
        {key: [row[key] for row in rows] for key in rows[0]},
    )


def prompt_of(workload: PhaseWorkload, vocabulary: int) -> Tensor:
    """Tokens int64 [batch, prompt]; which ones does not matter to the time they take."""
    import torch

    shape = (workload.batch, workload.prompt)
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(0))


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of `run`, with accelerators waited for and no garbage collection."""
    with undisturbed():
        _synchronize()
        wall, cpu = perf_counter(), process_time()
        run()
        _synchronize()
        return perf_counter() - wall, process_time() - cpu


@contextmanager
def undisturbed() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
