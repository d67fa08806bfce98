"""How often intervals cover, by simulation: at the sample sizes that the suite has, on windows that
were scored (tools/intervals/recorded.csv), on shapes worse than these, and on discrete data.

Seeds are fixed, so nothing here flakes. Each limit lies 2.5 deviations below the 97 % that are
asked for; intervals that miss too often are shown to fall below it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from bitgate.gates.decide import decide
from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.measure.measurement import Batch
from bitgate.measure.perplexity import PairedScores
from bitgate.measure.processes import Between, deviation_over, over_processes
from bitgate.statistics import (
    Estimate,
    clustered_share,
    clustered_wilson,
    median_interval,
    paired_difference,
    process_median,
    skewed_t,
    student_t,
)

Array = NDArray[np.float64]
RECORDED = Path(__file__).parents[2] / "tools/intervals/recorded.csv"
TOKENS = 127
TRIALS = 1500
ASKED = 0.97


def least(trials: int = TRIALS) -> float:
    """What an interval that covers 97 % falls below in one case of 160."""
    return ASKED - 2.5 * math.sqrt(ASKED * (1 - ASKED) / trials)


def covered(truth: float, estimates: list[Estimate]) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, Array]]:
    """Columns of scored windows by recipe."""
    rows: dict[str, list[dict[str, str]]] = {}
    with RECORDED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["recipe"], []).append(row)
    names = ("nll", "base_nll", "kl", "same_top1")
    return {
        recipe: {name: np.array([float(row[name]) for row in of]) for name in names}
        for recipe, of in rows.items()
    }


# --- means over windows --------------------------------------------------------------------


@pytest.mark.parametrize("n", [32, 64])
@pytest.mark.parametrize("metric", ["kl", "nll", "log ratio"])
def test_means_of_recorded_windows(
    recorded: dict[str, dict[str, Array]], metric: str, n: int
) -> None:
    rng = np.random.default_rng(n)
    for recipe, of in recorded.items():
        values = (of["nll"] - of["base_nll"] if metric == "log ratio" else of[metric]) / TOKENS
        samples = rng.choice(values, (TRIALS, n))
        estimates = [skewed_t(sample, 0.98) for sample in samples]
        assert covered(values.mean(), estimates) >= least(), recipe


@pytest.mark.parametrize("n", [32, 64])
@pytest.mark.parametrize("sigma", [0.25, 0.5, 0.75])
def test_means_of_skewed_data(sigma: float, n: int) -> None:
    rng, truth = np.random.default_rng(10), math.exp(sigma**2 / 2)
    samples = rng.lognormal(0, sigma, (TRIALS, n))
    assert covered(truth, [skewed_t(sample, 0.98) for sample in samples]) >= least()
    if (sigma, n) == (0.75, 32):
        assert covered(truth, [student_t(sample, 0.98) for sample in samples]) < least()


@pytest.mark.parametrize("n", [32, 64])
def test_means_of_heavy_tails_and_of_counts(n: int) -> None:
    rng = np.random.default_rng(11)
    for truth, samples in (
        (0.0, rng.standard_t(3, (TRIALS, n))),
        (0.3, rng.poisson(0.3, (TRIALS, n)).astype(float)),
        (0.0, rng.normal(0, 1, (TRIALS, n))),
    ):
        assert covered(truth, [skewed_t(sample, 0.98) for sample in samples]) >= least()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "level", "missed"),
    # At 8 bits one window in 190 diverges five times as much as the others. A sample without it
    # cannot know of it, which matters more the fewer windows there are and the stricter the level.
    [(32, 0.98, 0.04), (64, 0.98, 0.03), (32, 0.995, 0.0175), (64, 0.995, 0.0125)],
)
def test_divergence_of_recorded_windows_at_the_levels_of_looks(
    recorded: dict[str, dict[str, Array]], n: int, level: float, missed: float
) -> None:
    rng = np.random.default_rng(0)
    for recipe, of in recorded.items():
        values = of["kl"] / TOKENS
        estimates = [skewed_t(sample, level) for sample in rng.choice(values, (10_000, n))]
        assert covered(values.mean(), estimates) >= 1 - missed, recipe


# --- shares --------------------------------------------------------------------------------


def windows_of(rng: np.random.Generator, share: float, correlation: float, n: int) -> Array:
    """Of TOKENS tokens a window, any two of one window correlated like this."""
    of_window = np.full((TRIALS, n), share)
    if correlation:
        strength = 1 / correlation - 1
        of_window = rng.beta(share * strength, (1 - share) * strength, (TRIALS, n))
    return rng.binomial(TOKENS, of_window).astype(float)


@pytest.mark.parametrize(
    ("share", "correlation"),
    # 0.02 is the largest correlation seen, at 3 bits; 8 bits agree at 0.98 with none
    [(0.3, 0.03), (0.7, 0.0), (0.7, 0.1), (0.9, 0.03), (0.97, 0.1), (0.98, 0.0), (0.99, 0.05)],
)
def test_shares_of_clustered_tokens(share: float, correlation: float) -> None:
    counts = windows_of(np.random.default_rng(12), share, correlation, 32)
    sizes = np.full(32, TOKENS)
    assert covered(share, [clustered_share(x, sizes, 0.98) for x in counts]) >= least()
    if (share, correlation) == (0.99, 0.05):
        assert covered(share, [clustered_wilson(x, sizes, 0.98) for x in counts]) < least()


def test_shares_of_windows_that_differ_in_size() -> None:
    rng, estimates = np.random.default_rng(13), []
    for _ in range(TRIALS):
        sizes = rng.integers(16, 257, 32)
        of_window = rng.beta(0.9 * 30, 0.1 * 30, 32)
        estimates.append(clustered_share(rng.binomial(sizes, of_window), sizes, 0.98))
    assert covered(0.9, estimates) >= least()


@pytest.mark.parametrize("n", [32, 64])
def test_shares_of_recorded_windows(recorded: dict[str, dict[str, Array]], n: int) -> None:
    rng, sizes = np.random.default_rng(n), np.full(n, TOKENS)
    for recipe, of in recorded.items():
        samples = rng.choice(of["same_top1"], (TRIALS, n))
        estimates = [clustered_share(sample, sizes, 0.98) for sample in samples]
        assert covered(of["same_top1"].mean() / TOKENS, estimates) >= least(), recipe


# --- accuracies ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [100, 300, 1000])
@pytest.mark.parametrize(("gained", "lost"), [(0.01, 0.03), (0.02, 0.08), (0.1, 0.1), (0.05, 0.25)])
def test_differences_of_accuracies(gained: float, lost: float, n: int) -> None:
    chances = [gained, lost, 1 - gained - lost]
    counts = np.random.default_rng(n).multinomial(n, chances, TRIALS)
    estimates = [paired_difference(int(b), int(c), n, 0.98) for b, c, _ in counts]
    assert covered(gained - lost, estimates) >= least()
    if (gained, n) == (0.01, 100):  # where the normal interval that everybody uses fails
        waldens = [wald(int(b), int(c), n) for b, c, _ in counts]
        assert covered(gained - lost, waldens) < least()


def wald(gained: int, lost: int, n: int) -> Estimate:
    value = (gained - lost) / n
    half = 2.326 * math.sqrt((gained + lost) / n - value**2) / math.sqrt(n)
    return Estimate(value, value - half, value + half, n, "Wald")


# --- processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 9, 20])
@pytest.mark.parametrize("digits", [2, 0])
def test_medians_of_discrete_times(n: int, digits: int) -> None:
    """A timer that ticks makes ties, which only widen the interval."""
    rng = np.random.default_rng(n)
    samples = np.round(rng.exponential(3, (TRIALS, n)), digits)
    truth = float(np.round(3 * math.log(2), digits))
    assert covered(truth, [median_interval(sample, 0.98) for sample in samples]) >= least()


def test_the_median_of_one_process_covers_what_all_would_say() -> None:
    rng = np.random.default_rng(12)
    estimates = [
        process_median(rng.normal(0.7, 0.05) + rng.standard_t(3, 40) * 0.03, 0.05, 0.98)
        for _ in range(800)
    ]
    assert covered(0.7, estimates) >= least(800)


def far_off(rng: np.random.Generator, count: int) -> Array:
    """One process in ten is three times as far from the rest."""
    return rng.normal(0, 0.05, count) * rng.choice([1.0, 3.0], count, p=[0.9, 0.1])


@pytest.mark.parametrize("launches", [3, 5, 8])
@pytest.mark.parametrize("processes", [far_off, lambda rng, count: rng.laplace(0, 0.04, count)])
def test_launches_whose_processes_are_not_normal(
    launches: int, processes: Callable[[np.random.Generator, int], Array]
) -> None:
    """The spread is calibrated over ten launches; five are what a nightly run has."""
    rng, estimates, trials = np.random.default_rng(launches), [], 600

    def steps(count: int) -> tuple[Array, Array]:
        times = processes(rng, count)[:, None] + rng.normal(0, 0.02, (count, 8))
        return times.ravel(), np.repeat(np.arange(count), 8)

    for _ in range(trials):
        known = Between(deviation_over(*steps(10)), 10, "from a test")
        estimates.append(over_processes(*steps(launches), known, 0.98))
    assert covered(0.0, estimates) >= least(trials)


# --- verdicts ------------------------------------------------------------------------------


class Subset(PairedScores):
    """Windows that have been scored before."""

    def __init__(self, columns: dict[str, Array]) -> None:
        self.columns = columns
        self.most = len(columns["nll"])
        self.least = 32
        self.quantized = SimpleNamespace(packed_layers=0, expected_layers=0)

    def batches(self) -> Iterator[Batch]:
        for start in range(0, self.most, 8):
            part = slice(start, start + 8)
            yield Batch([0.1], {name: values[part] for name, values in self.columns.items()})


@pytest.mark.parametrize(
    ("metric", "side"),
    [("perplexity_ratio", "max"), ("kl_divergence", "max"), ("top1_agreement", "min")],
)
def test_verdicts_are_seldom_wrong_where_the_truth_is_the_bound(
    recorded: dict[str, dict[str, Array]], metric: str, side: str
) -> None:
    """200 subsets of 64 windows with each recipe, looked at several times (docs/verdicts.md)."""
    rng, outcomes = np.random.default_rng(0), []
    for of in recorded.values():
        text = {**of, "tokens": np.full(len(of["nll"]), float(TOKENS))}
        known = {m.name: m.value for m in Subset(text).metrics(text, 0.98, 0.98)}
        bound = Bound.model_validate({side: known[metric]})
        for _ in range(200):
            chosen = rng.permutation(len(text["nll"]))[:64]
            subset = Subset({name: values[chosen] for name, values in text.items()})
            decision = decide(subset, {metric: Rule(metric, "g", "thresholds.toml", bound)})
            outcomes.append(decision.verdicts[0].outcome)
    assert len(outcomes) - outcomes.count("inconclusive") > 0
    assert outcomes.count("fail") <= 0.02 * len(outcomes)
    assert outcomes.count("pass") <= 0.02 * len(outcomes)
