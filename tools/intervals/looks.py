"""Ways to look more than once: how often wrong at the bound, and how soon decided away from it.

The estimate is normal with known variance, so that ways to look are compared and not intervals. A
distance of d means that the truth lies d standard errors of all observations short of the bound;
to be decided there at 98 % without looking takes 2.3 on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bitgate.gates.decide import GROWTH
from bitgate.gates.looks import POWER, boundaries

Array = NDArray[np.float64]
ALPHA = 0.02
SIDE = ALPHA / 2
LEAST, BATCH = 32, 8
MOST = (64, 128, 256)
DISTANCES = (2, 3, 4, 6)


def schedule(most: int, growth: float) -> list[int]:
    """Windows at each look: when they have grown by this factor, and at the end."""
    counts = [LEAST]
    while counts[-1] < most:
        due = math.ceil(counts[-1] * growth / BATCH) * BATCH
        counts.append(min(most, max(due, counts[-1] + BATCH)))
    return counts


#: the share of the error that is spent by the time t, of 1
SPENDING: dict[str, Callable[[Array], Array]] = {
    "O'Brien-Fleming": lambda t: 2 * stats.norm.sf(stats.norm.isf(SIDE / 2) / np.sqrt(t)) / SIDE,
    "Pocock": lambda t: np.log(1 + (math.e - 1) * t),
    "t": lambda t: t,
    "t^2": lambda t: t**2,
    "t^3": lambda t: t**3,
    "halves": lambda t: 1 - 0.5 ** np.arange(1, len(t) + 1),
}


def ways(counts: list[int]) -> dict[str, Array]:
    """Boundaries z at each look."""
    n = np.array(counts, float)
    times, out = n / n[-1], {}
    for name, spending in SPENDING.items():
        spent = SIDE * spending(times)
        spent[-1] = SIDE
        out[f"{name}, union"] = stats.norm.isf(np.diff(spent, prepend=0))
        out[f"{name}, exact"] = np.array(boundaries(tuple(times), tuple(spent)))
    # Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Annals of Statistics 52, 2024: tightest
    # where looks begin, or where they end
    for at in (counts[0], counts[-1]):
        rho2 = (-2 * math.log(ALPHA) + math.log(1 - 2 * math.log(ALPHA))) / at
        scale = 2 * (n * rho2 + 1) / (n * rho2) * np.log(np.sqrt(n * rho2 + 1) / ALPHA)
        out[f"confidence sequence, tight at {at}"] = np.sqrt(scale)
    return out


def judged(counts: list[int], z: Array, distance: float, noise: Array) -> tuple[Array, Array]:
    """Of each trial: -1 if it passes, 1 if it fails, 0 if neither; and the windows it took."""
    times = np.array(counts) / counts[-1]
    seen = noise - distance * np.sqrt(times)
    outcome, windows = np.zeros(len(noise)), np.full(len(noise), float(counts[-1]))
    for k, count in enumerate(counts):
        crossed = (np.abs(seen[:, k]) > z[k]) & (outcome == 0)
        outcome[crossed] = np.sign(seen[crossed, k])
        windows[crossed] = count
    return outcome, windows


def report(trials: int) -> None:
    print(f"Ways to look, {trials} trials; the suite's: t^{POWER}, exact, growth {GROWTH}")
    for most in MOST:
        for growth in (1.5, 1.25, 1.0):
            counts = schedule(most, growth)
            times = np.array(counts) / most
            steps = np.sqrt(np.diff(times, prepend=0))
            normal = np.random.default_rng(0).standard_normal((trials, len(counts)))
            noise = (normal * steps).cumsum(1) / np.sqrt(times)
            print(f"\n{LEAST} to {most} windows, {len(counts)} looks (growth {growth})")
            print(f"  {'':33} wrong at the bound  windows (undecided) at {DISTANCES}")
            for name, z in ways(counts).items():
                outcome, _ = judged(counts, z, 0, noise)
                wrong = f"{np.mean(outcome > 0):.2%} / {np.mean(outcome < 0):.2%}"
                away = [judged(counts, z, d, noise) for d in DISTANCES]
                found = "  ".join(f"{w.mean():4.0f} ({np.mean(o == 0):4.0%})" for o, w in away)
                print(f"  {name:33} {wrong:18} {found}")
