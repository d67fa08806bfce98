"""How often each interval covers, at the sample sizes that the suite has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
from candidates import MEANS, SHARES, Candidate
from populations import Array, Clusters, Population, means, resampled, shares

from bitgate.measure.processes import Between, deviation_over, over_processes
from bitgate.statistics import paired_difference

LEVEL = 0.98
WINDOWS = (32, 64, 128)
ITEMS = (100, 300, 1000)
LAUNCHES = (1, 3, 5, 8)


def report(trials: int, names: Sequence[str] = ()) -> None:
    """Print all tables; `names` restricts them to these intervals."""

    def chosen(candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
        return {k: v for k, v in candidates.items() if not names or k in names}

    print(f"Coverage of {LEVEL:.0%} intervals in {trials} samples, %")
    print("(intervals wholly above the truth / wholly below it; median width over the truth)")
    _compare("Means over windows", means(), chosen(MEANS), trials)
    _compare("Shares over windows of 127 tokens", shares(), chosen(SHARES), trials)
    differences(trials)
    launches(min(trials, 2000))


def _compare(
    title: str,
    populations: Sequence[Population | Clusters],
    candidates: Mapping[str, Candidate],
    trials: int,
) -> None:
    print(f"\n{title}")
    seconds = dict.fromkeys(candidates, 0.0)
    samples = 0
    for population in populations:
        for n in WINDOWS:
            x = population.draw(np.random.default_rng(n), (trials, n))
            samples += trials
            print(f"  {population.name}, n = {n}")
            for name, interval in candidates.items():
                if "log" in name.split() and (x.mean(1) <= 0).any():
                    continue  # a logarithm needs a positive mean
                start = perf_counter()
                low, high = interval(x, LEVEL)
                seconds[name] += perf_counter() - start
                print(f"    {name:18} {_line(low, high, population.truth)}")
    print("  microseconds a sample:", end="")
    print("".join(f" {name} {1e6 * s / samples:.0f}," for name, s in seconds.items()).rstrip(","))


def _line(low: Array, high: Array, truth: float) -> str:
    covered = np.mean((low <= truth) & (truth <= high))
    above, below = np.mean(low > truth), np.mean(high < truth)
    width = np.median(high - low) / (abs(truth) or 1.0)
    return f"{covered:7.2%} ({above:.2%} / {below:.2%}) {width:.4g}".replace("%", "")


def differences(trials: int) -> None:
    """Tango's interval of paired accuracies."""
    print("\nDifference of accuracies on the same items: paired_difference")
    rng = np.random.default_rng(0)
    for n in ITEMS:
        for gained, lost in ((0.01, 0.01), (0.01, 0.03), (0.02, 0.08), (0.1, 0.1), (0.05, 0.25)):
            counts = rng.multinomial(n, [gained, lost, 1 - gained - lost], trials)
            found = [paired_difference(int(b), int(c), n, LEVEL) for b, c, _ in counts]
            low, high = (np.array([getattr(e, side) for e in found]) for side in ("low", "high"))
            print(f"  n = {n:4}, {gained} gained, {lost} lost {_line(low, high, gained - lost)}")


def launches(trials: int) -> None:
    """The interval over processes, with a calibration of ten launches.

    Processes are drawn from what was recorded of fresh ones (tools/drift_recorded.csv), from a
    normal distribution, and from one with one process in ten three times as far off.
    """
    print("\nPaired speed ratio over launches: over_processes, 8 steps each")
    from populations import HERE

    table = np.genfromtxt(HERE.parent / "drift_recorded.csv", delimiter=",", names=True, dtype=None)
    logs = np.log(table["ratio"].astype(float))
    sources = [
        resampled("recorded", logs - logs.mean()),
        Population("normal", 0.0, lambda rng, shape: rng.normal(0, 0.05, shape)),
        Population(
            "one in ten far off",
            0.0,
            lambda rng, shape: rng.normal(0, 0.05, shape) * rng.choice([1, 3], shape, p=[0.9, 0.1]),
        ),
    ]
    for population in sources:
        for count in LAUNCHES:
            rng = np.random.default_rng(count)
            found = []
            for _ in range(trials):
                known = deviation_over(*_steps(rng, population, 10))
                known_by = Between(known, 10, "simulated")
                found.append(over_processes(*_steps(rng, population, count), known_by, LEVEL))
            low, high = (np.array([getattr(e, side) for e in found]) for side in ("low", "high"))
            print(f"  {population.name}, {count} launches: {_line(low, high, 0.0)}")


def _steps(rng: np.random.Generator, population: Population, processes: int) -> tuple[Array, Array]:
    centre = population.draw(rng, (processes, 1)) - population.truth
    steps = centre + rng.normal(0, 0.02, (processes, 8))
    return steps.ravel(), np.repeat(np.arange(processes), 8).astype(float)
