"""What samples are drawn from: windows that were scored, and shapes that are worse than these."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HERE = Path(__file__).parent
TOKENS = 127  #: scored in each window of `enwiki`


@dataclass(frozen=True)
class Population:
    """`draw(rng, (samples, n))` gives independent values of mean `truth`."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator, tuple[int, int]], Array]


def recorded() -> dict[str, dict[str, Array]]:
    """Columns of the recorded windows by recipe, in the order in which they are drawn."""
    rows: dict[str, dict[str, list[float]]] = {}
    with (HERE / "recorded.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            columns = rows.setdefault(row.pop("recipe"), {})
            for name, value in row.items():
                columns.setdefault(name, []).append(float(value))
    return {recipe: {k: np.array(v) for k, v in of.items()} for recipe, of in rows.items()}


def resampled(name: str, values: Array) -> Population:
    """Draws from what was seen, with replacement, as from a text that goes on like this."""
    return Population(name, float(values.mean()), lambda rng, shape: rng.choice(values, shape))


def means() -> list[Population]:
    """Of quantities whose mean is asked for."""
    out = []
    for recipe, of in recorded().items():
        short = recipe.removeprefix("hqq-").removesuffix("-dequantize")
        out += [
            resampled(f"{short} KL", of["kl"] / TOKENS),
            resampled(f"{short} log ratio", (of["nll"] - of["base_nll"]) / TOKENS),
            resampled(f"{short} NLL", of["nll"] / TOKENS),
        ]
    for sigma in (0.25, 0.5, 0.75, 1.0):
        out.append(
            Population(
                f"lognormal {sigma}",
                math.exp(sigma**2 / 2),
                lambda rng, shape, sigma=sigma: rng.lognormal(0, sigma, shape),
            )
        )
    out += [
        Population("normal", 5.0, lambda rng, shape: rng.normal(5, 1, shape)),
        Population("Student t3", 5.0, lambda rng, shape: 5 + rng.standard_t(3, shape)),
        Population("exponential", 1.0, lambda rng, shape: rng.exponential(1, shape)),
        Population("Poisson 0.3", 0.3, lambda rng, shape: rng.poisson(0.3, shape).astype(float)),
    ]
    return out


@dataclass(frozen=True)
class Clusters:
    """`draw` gives how many of `TOKENS` tokens agree in each window; their share is `truth`."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator, tuple[int, int]], Array]


def shares() -> list[Clusters]:
    """Recorded agreement, and beta-binomial windows with a correlation between their tokens."""
    out = []
    for recipe, of in recorded().items():
        short = recipe.removeprefix("hqq-").removesuffix("-dequantize")
        seen = resampled(f"{short} agreement", of["same_top1"])
        out.append(Clusters(seen.name, seen.truth / TOKENS, seen.draw))
    out += [
        Clusters(
            f"{share}, correlation {correlation}",
            share,
            lambda rng, shape, p=share, rho=correlation: beta_binomial(rng, shape, p, rho),
        )
        for share in (0.3, 0.7, 0.9, 0.97, 0.99)
        for correlation in (0.0, 0.01, 0.03, 0.1)
    ]
    return out


def beta_binomial(
    rng: np.random.Generator, shape: tuple[int, int], share: float, correlation: float
) -> Array:
    """Of TOKENS tokens a window; any two of one window are correlated like this."""
    of_window = np.full(shape, share)
    if correlation:
        strength = 1 / correlation - 1
        of_window = rng.beta(share * strength, (1 - share) * strength, shape)
    return rng.binomial(TOKENS, of_window).astype(float)
