"""Speed of generation: base and quantized model take turns, so that what disturbs the machine
disturbs both.

A timed step is long enough (50 ms) that being pre-empted once does not double it. Pairs run
AB BA AB, which cancels drift; their ratio is what is judged: by the wall clock, which users wait
by, and by the CPU clock where one thread computes, as others disturb that less. Absolute times are
recorded for the reader and never compared across machines.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from bitgate.catalog import Execution, PhaseWorkload
from bitgate.kernels.served import Served
from bitgate.measure.measurement import Batch, MeasureError
from bitgate.measure.packing import packed_layers
from bitgate.measure.processes import ASSUMED, Between, Spread, deviation_over, over_processes
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
CPU_COLUMNS = ("base_cpu_seconds", "cpu_seconds")


def paired_steps(
    quantized: Served,
    base: Served,
    workload: PhaseWorkload,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    limit: int = 200,
    spread: Spread = ASSUMED,
) -> PairedSteps:
    """Time decode steps, or prompts read, of both models in turn; at most `limit` pairs.

    `alone` is entered around all that is timed: whoever shares this machine waits meanwhile.
    `spread` says how much other processes would differ from this one.
    """
    return PairedSteps(quantized, base, workload, alone, limit, spread)


class PairedSteps:
    """One observation per pair: wall and CPU seconds of each side for `tokens` tokens each, all in
    this process, which counts as launch 0."""

    least = LEAST_PAIRS

    def __init__(
        self,
        quantized: Served,
        base: Served,
        workload: PhaseWorkload,
        alone: Callable[[], AbstractContextManager[None]],
        limit: int,
        spread: Spread = ASSUMED,
    ) -> None:
        self.quantized = quantized
        self.base = base
        self.workload = workload
        self.alone = alone
        self.limit = limit
        self.spread = spread
        self.prompt = prompt_of(workload, base.vocabulary)

    def batches(self) -> Iterator[Batch]:
        # Twice: compiled and warm while others may still work, who make each step seem longer; then
        # alone, which is what counts.
        if self.workload.kind == "decode":
            room, _ = self._fitted(self.workload.output)
            with self.alone():
                yield from self._timed(self._decode_pairs(room))
        else:
            self._prompts()
            with self.alone():
                yield from self._timed(self._prefill_pairs())

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
                    "launch": 0,
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

    def _decode_pairs(self, room: int) -> Iterator[Pair]:
        room, steps = self._fitted(room)
        left = room - WARM_STEPS
        while True:
            while left >= steps:
                left -= steps
                yield (
                    partial(_decode, self.base, steps),
                    partial(_decode, self.quantized, steps),
                    steps * self.workload.batch,
                )
            self._read_prompt(room)
            left = room

    def _fitted(self, room: int) -> tuple[int, int]:
        """How long an output must be, at least `room`, and how many steps of it are timed at once;
        both models have made the first few of them."""
        while True:
            self._read_prompt(room)
            fastest = min(self._warm_step(served, room) for served in self._both)
            steps = max(1, math.ceil(SHORTEST_STEP / fastest))
            if steps <= room - WARM_STEPS:
                return room, steps
            room = self._longer(steps)  # the output is too short to be timed: generate more

    def _read_prompt(self, room: int) -> None:
        for served in self._both:
            served.prefill(self.prompt, room)

    @property
    def _both(self) -> tuple[Served, Served]:
        return self.base, self.quantized

    def _longer(self, steps: int) -> int:
        """An output that has room for `steps` steps at once, and for some more in case the next
        ones are faster; as far as both models' contexts allow."""
        needed, wanted = steps + WARM_STEPS, 2 * steps + WARM_STEPS
        contexts = [served.context for served in self._both if served.context is not None]
        allowed = min(contexts, default=wanted + self.workload.prompt) - self.workload.prompt
        if allowed < needed:
            raise MeasureError(
                f"workload {self.workload.name}: steps of {1000 * SHORTEST_STEP:g} ms take an "
                f"output of {needed} tokens, and the model's context has room for {allowed} after "
                f"a prompt of {self.workload.prompt}: shorten the prompt, or raise the batch"
            )
        return min(wanted, allowed)

    def _warm_step(self, served: Served, room: int) -> float:
        """The shortest of a few first steps; a compiled model compiles in the first."""
        return min(timed(served.decode_step)[0] for _ in range(min(WARM_STEPS, room)))

    def _prefill_pairs(self) -> Iterator[Pair]:
        times = self._prompts()

        def read(served: Served) -> None:
            for _ in range(times):
                served.prefill(self.prompt, 0)

        while True:
            yield (
                partial(read, self.base),
                partial(read, self.quantized),
                times * self.prompt.numel(),
            )

    def _prompts(self) -> int:
        """How many times the prompt is read at once; both models have read it."""
        self._read_prompt(0)
        fastest = min(timed(partial(served.prefill, self.prompt, 0))[0] for served in self._both)
        return max(1, math.ceil(SHORTEST_STEP / fastest))

    def metrics(self, items: Items, level: float, nominal: float) -> list[Metric]:
        packed = packed_layers(self.quantized)
        execution = self.quantized.execution
        return speeds(items, self.workload, execution, self.spread, packed, level, nominal)


def speeds(
    items: Items,
    workload: PhaseWorkload,
    execution: Execution,
    spread: Spread,
    packed: Metric,
    level: float,
    nominal: float,
) -> list[Metric]:
    """The metrics of pairs that one or several processes have timed, and `packed`, their layers."""
    import numpy as np

    base, own, tokens = (
        np.asarray(items[key], float) for key in ("base_seconds", "seconds", "tokens")
    )

    def metric(name: str, values: Any, between: Between, clock: str = "wall") -> Metric:
        logs, launch = np.log(values), items["launch"]
        e = over_processes(logs, launch, between, level).exp()
        own = deviation_over(logs, launch) if e.n > 1 else None
        how = f"{clock} clock, {e.method}"
        return Metric(name, e.value, Interval(e.low, e.high, nominal, how, "process", e.n, own))

    tokens_per_pass = workload.batch * (1 if workload.kind == "decode" else workload.prompt)
    by_cpu = []
    if has_cpu_clock(execution, items):
        ratio = np.asarray(items["base_cpu_seconds"]) / np.asarray(items["cpu_seconds"])
        by_cpu = [metric("cpu_speedup", ratio, spread.cpu_ratio or spread.ratio, "CPU")]
    return [
        metric("speedup", base / own, spread.ratio),
        *by_cpu,
        metric("tokens_per_second", tokens / own, spread.seconds),
        metric("base_tokens_per_second", tokens / base, spread.seconds),
        metric("latency_ms", 1000 * own / tokens * tokens_per_pass, spread.seconds),
        packed,
    ]


def has_cpu_clock(execution: Execution, items: Items) -> bool:
    """Whether CPU time says how long a step takes when nothing disturbs it.

    It stops while another process has the core, and while this one waits. Of several threads it is
    the sum, which is work and not time; of an accelerator it knows nothing. A clock too coarse to
    have advanced in every step says nothing either.
    """
    import numpy as np

    if execution.device != "cpu" or execution.threads != 1:
        return False
    return all(bool((np.asarray(items[name]) > 0).all()) for name in CPU_COLUMNS)


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
