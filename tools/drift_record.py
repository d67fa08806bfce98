"""Record how a paired speed ratio and an absolute time vary from process to process.

    python tools/drift_record.py 200 > tools/drift_recorded.csv

Each row is a fresh process, as each run of the benchmarks is: 8 pairs of steps in turns (AB BA) of
two small numpy workloads, one bound by memory and one by arithmetic, as a base and a quantized
model are; medians over the pairs. `tools/choose_drift.py` judges methods by it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from time import perf_counter

PAIRS = 8


def main() -> None:
    if sys.argv[1:] == ["--one"]:
        print(*one(), sep=",")
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    print("run,time,ratio,base_ms,ms", flush=True)
    for run in range(int(sys.argv[1])):
        done = subprocess.run(
            [sys.executable, __file__, "--one"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        print(f"{run},{datetime.now(UTC):%Y-%m-%dT%H:%M:%S},{done.stdout.strip()}", flush=True)


def one() -> tuple[str, ...]:
    """ratio, milliseconds of the base's step and of the other's, in this process."""
    import numpy as np

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4096, 4096), dtype=np.float32)
    codes = rng.integers(-8, 8, (512, 4096), dtype=np.int8)
    x = rng.standard_normal(4096, dtype=np.float32)

    def base() -> None:
        for _ in range(8):
            weights @ x

    def quantized() -> None:
        for _ in range(40):
            for block in range(0, 512, 64):
                (codes[block : block + 64].astype(np.float32) * np.float32(0.1)) @ x

    base(), quantized()
    pairs = []
    for pair in range(PAIRS):
        seconds = {}
        for step in (base, quantized) if pair % 2 == 0 else (quantized, base):
            start = perf_counter()
            step()
            seconds[step] = perf_counter() - start
        pairs.append((seconds[base] / seconds[quantized], seconds[base], seconds[quantized]))
    ratio, before, after = np.median(pairs, axis=0)
    return f"{ratio:.5f}", f"{1e3 * before:.3f}", f"{1e3 * after:.3f}"


if __name__ == "__main__":
    main()
