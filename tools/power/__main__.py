"""How small a slowdown is found, by how many launches: this suite's gate and others' rules.

    tox -e power                       time 60 launches of a real cell here: half an hour
    tox -e power -- --recorded FILE    judge what was recorded before: minutes
    tox -e power -- --launches 100 --keep FILE

Each launch is a fresh process that times base and quantized model in turns. Runs are made of
launches drawn from these, with replacement, and the newer run's quantized model is made slower.
Reported is the smallest slowdown that is red in 80 % of trials, each rule of others tuned to 2 %
red without any; how often people's usual settings are red without any; and how many unchanged runs,
of launches that followed each other, this suite calls red. docs/decisions/0011-power.md has the
result; tools/power/recorded.csv are the timings behind it.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import bound
import numpy as np
import order
import others
import record
import suite
from record import Array, Recorded

LAUNCHES = (1, 2, 3, 5, 8, 12)
NEEDED_TRIALS = 100
NEEDED = (0.05, 0.10)  #: slowdowns whose launches are stated
MORE = (16, 20, 25, 30, 40)  #: launches that are tried beyond LAUNCHES for these
CLOCKS = {"wall": "seconds", "CPU": "cpu_seconds"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tox -e power --",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="judge these timings")
    parser.add_argument("--launches", type=int, default=60, help="to time here")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the timings here")
    parser.add_argument("--trials", type=int, default=400, help="of this suite's gate")
    parser.add_argument("--tolerance", type=float, default=suite.DEFAULTS["speedup"].worse)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.recorded
        if path is None:
            path = options.keep or Path(folder) / "recorded.csv"
            record.record(path, options.launches)
        recorded = record.read(path)
    for line in report(recorded, options.trials, options.tolerance):
        print(line, flush=True)
    return 0


def report(recorded: Recorded, trials: int, tolerance: float) -> Iterator[str]:
    """Markdown."""
    deviation = {clock: float(recorded.log_ratios(clock).std(ddof=1)) for clock in CLOCKS}
    yield f"{len(recorded)} launches of {recorded.pairs} pairs: {record.MODEL}, {record.RECIPE}"
    for clock, column in CLOCKS.items():
        x = recorded.log_ratios(clock)
        steps = np.log(recorded.seconds["base_" + column] / recorded.seconds[column])
        seconds = np.log(np.median(recorded.seconds[column], axis=1))
        yield (
            f"{clock} clock: ratio {math.exp(x.mean()):.3f}; deviation between processes "
            f"{per_cent(deviation[clock])} (autocorrelation {correlation(x):+.2f}), between pairs "
            f"of a process {per_cent(np.median(steps.std(axis=1, ddof=1)))}; of absolute times "
            f"between processes {per_cent(seconds.std(ddof=1))}"
        )
    columns = [str(n) for n in LAUNCHES]
    yield ""
    yield from header("smallest slowdown found, %, by launches a run", columns)
    sigma = min(deviation.values())
    yield from _suite(recorded, trials, tolerance, sigma)
    for clock, column in CLOCKS.items():
        yield from _others(recorded.seconds[column], clock)
    yield ""
    yield from header("red though nothing changed, %, as people have it", columns)
    for clock, column in CLOCKS.items():
        yield from _alarms(recorded.seconds[column], clock)
    yield ""
    yield from header("unchanged runs as they followed each other: red", ["1", "5"])
    judge = suite.Judge.of(recorded, tolerance)
    for name, how in (("bitgate compare", order.adjacent), ("--against latest", order.following)):
        yield row(name, [how(judge, n) for n in (1, 5)])


# --- this suite ----------------------------------------------------------------------------

WAYS = {
    "bitgate compare, n and n": (suite.compared, 1),
    f"bitgate --against, {suite.HISTORY} runs before": (suite.predicted, suite.HISTORY),
}


def _suite(recorded: Recorded, trials: int, tolerance: float, sigma: float) -> Iterator[str]:
    judge = suite.Judge.of(recorded, tolerance)
    allowed = -math.log1p(-tolerance)

    def permitted(slowdown: float) -> float:
        """Beyond what is no change."""
        return math.expm1(allowed + math.log1p(slowdown))

    with ProcessPoolExecutor() as pool:
        for name, (way, runs) in WAYS.items():
            least = {
                n: np.array(
                    list(pool.map(partial(_trial, way, judge, n), range(trials), chunksize=20))
                )
                for n in LAUNCHES
            }
            found = [float(np.quantile(x, bound.POWER, method="higher")) for x in least.values()]
            known = [permitted(bound.known(sigma, runs * n, n)) for n in LAUNCHES]
            own = [
                permitted(bound.student(sigma, runs * n, n, (runs + 1) * n - 2)) for n in LAUNCHES
            ]
            yield row(name, map(per_cent, found))
            yield row(
                "... red without any", (per_cent(float(np.mean(x == 0))) for x in least.values())
            )
            for what, best in (("known before", known), ("estimated by these launches", own)):
                yield row(f"... permitted by the spread, {what}", map(per_cent, best))
                yield row("... found / permitted", map(_times, found, best))
            for slowdown in NEEDED:
                n = _needed(pool, way, judge, slowdown, dict(zip(LAUNCHES, found, strict=True)))
                yield row(f"... launches for {100 * slowdown:g} %", [str(n or "more")])


def _trial(way: suite.Way, judge: suite.Judge, n: int, seed: int) -> float:
    return suite.smallest(way(judge, n, np.random.default_rng((n, seed))))


def _times(found: float, permitted: float) -> str:
    return f"{found / permitted:.2f}" if math.isfinite(permitted) else ""


def _needed(
    pool: Executor, way: suite.Way, judge: suite.Judge, slowdown: float, found: dict[int, float]
) -> int | None:
    """How many launches find this slowdown in 80 % of trials."""
    for n in (*LAUNCHES, *MORE):
        if n not in found:
            seen = pool.map(partial(_sees, way, judge, n, slowdown), range(NEEDED_TRIALS))
            if np.mean(list(seen)) >= bound.POWER:
                return n
        elif found[n] <= slowdown:
            return n
    return None


def _sees(way: suite.Way, judge: suite.Judge, n: int, slowdown: float, seed: int) -> bool:
    return way(judge, n, np.random.default_rng((n, seed)))(slowdown)


# --- others --------------------------------------------------------------------------------

TRIALS = 2000


def drawn(seconds: Array, n: int, seed: int) -> tuple[Array, Array]:
    """The steps of `n` launches, twice, of shape (trials, n x pairs)."""
    rng = np.random.default_rng((n, seed))
    old, new = (
        seconds[rng.integers(0, len(seconds), (TRIALS, n))].reshape(TRIALS, -1) for _ in range(2)
    )
    return old, new


def _others(seconds: Array, clock: str) -> Iterator[str]:
    for rule in others.RULES:
        found = []
        for n in LAUNCHES:
            least = rule.tuned(*drawn(seconds, n, 0), bound.ALARMS)
            found.append(_found(rule, *drawn(seconds, n, 1), least))
        yield row(f"{rule.name}, {clock} clock", map(per_cent, found))


def _found(rule: others.Rule, old: Array, new: Array, least: float) -> float:
    """The smallest slowdown that is red in 80 % of trials."""

    def power(share: float) -> float:
        return float(rule.red(old, new * (1 + share), least).mean())

    low, high = 0.0, 0.05
    while power(high) < bound.POWER:
        low, high = high, 2 * high
        if high > suite.MOST:
            return math.inf
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= bound.POWER else (middle, high)
    return high


def _alarms(seconds: Array, clock: str) -> Iterator[str]:
    for rule in others.RULES:
        rates = [float(rule.red(*drawn(seconds, n, 2), rule.usual).mean()) for n in LAUNCHES]
        usual = f" at {100 * rule.usual:g} %" if rule.usual else ""
        yield row(f"{rule.name}{usual}, {clock} clock", map(per_cent, rates))


# --- tables --------------------------------------------------------------------------------


def header(title: str, columns: Iterable[str]) -> Iterator[str]:
    names = [title, *columns]
    yield "| " + " | ".join(names) + " |"
    yield "|---" * len(names) + "|"


def row(name: str, cells: Iterable[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def per_cent(x: float) -> str:
    return "never" if math.isinf(x) else f"{100 * x:.1f}"


def correlation(x: Array) -> float:
    """Of each launch with the one after it."""
    return float(np.corrcoef(x[:-1], x[1:])[0, 1])


if __name__ == "__main__":
    raise SystemExit(main())
