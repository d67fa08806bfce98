"""What tracking energy adds to the time of work, in turn with the same work alone.

    python tools/energy_cost.py [PAIRS] [SECONDS]

The work is products of matrices on one thread. Prints the median of PAIRS (default 11) ratios of
the whole time, tracked over alone, with the 95 % interval of a median from order statistics, for
work of SECONDS (default 4), and what setting the tracker up takes, once a process.
"""

from __future__ import annotations

import sys
from time import perf_counter

from scipy.stats import binom


def timed(call: object) -> float:
    started = perf_counter()
    call()  # type: ignore[operator]
    return perf_counter() - started


def main() -> None:
    import torch

    from bitgate.catalog.energy import EnergySettings
    from bitgate.measure.energy_meter import EnergyMeter

    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 4.0
    torch.set_num_threads(1)
    matrix = torch.randn(512, 512)

    def work(times: int) -> None:
        for _ in range(times):
            matrix @ matrix

    work(20)
    times = max(1, int(20 * seconds / timed(lambda: work(20))))
    started = perf_counter()
    meter = EnergyMeter(EnergySettings(), "cpu")
    setting_up = perf_counter() - started
    ratios = []
    for pair in range(pairs):
        tracked, alone = (lambda: meter.measure(lambda: work(times))), (lambda: work(times))
        if pair % 2:
            second, first = timed(alone), timed(tracked)
        else:
            first, second = timed(tracked), timed(alone)
        ratios.append(first / second)
    ratios.sort()
    outside = int(binom.ppf(0.025, pairs, 0.5))
    low, high = ratios[max(0, outside - 1)], ratios[min(pairs - 1, pairs - outside)]
    print(f"set up in {setting_up:.1f} s; {pairs} pairs of {seconds:g} s: {ratios[pairs // 2]:.4f}")
    print(f"times as long as alone ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
