"""The error that looks may spend: published boundaries, and simulated looks."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitgate.gates.looks import boundaries, look_level

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
ONE_SIDED = 0.025


@pytest.mark.parametrize(
    ("spent", "published"),
    # Reboussin, DeMets, Kim and Lan, Controlled Clinical Trials 21 (2000) 190-207: five looks,
    # two-sided 5 %, spending like O'Brien and Fleming's and like Pocock's boundaries
    [
        (
            [2 * stats.norm.sf(stats.norm.isf(ONE_SIDED / 2) / math.sqrt(t)) for t in FIFTHS],
            (4.8769, 3.3569, 2.6803, 2.2898, 2.0310),
        ),
        (
            [ONE_SIDED * math.log(1 + (math.e - 1) * t) for t in FIFTHS],
            (2.4380, 2.4268, 2.4101, 2.3966, 2.3859),
        ),
    ],
)
def test_boundaries_are_the_published_ones(
    spent: list[float], published: tuple[float, ...]
) -> None:
    assert boundaries(FIFTHS, tuple(spent)) == pytest.approx(published, abs=3e-4)


def test_two_looks_are_scipys_bivariate_normal() -> None:
    first, second = boundaries((0.5, 1.0), (0.004, 0.01))
    joint = stats.multivariate_normal([0, 0], [[1, math.sqrt(0.5)], [math.sqrt(0.5), 1]])
    assert stats.norm.sf(first) == pytest.approx(0.004)
    assert 1 - joint.cdf([first, second]) == pytest.approx(0.01, abs=1e-5)


def test_one_look_spends_all() -> None:
    assert look_level((40,), 0.02, most=64, last=True) == pytest.approx(0.98)
    assert look_level((64,), 0.02, most=64, last=False) == pytest.approx(0.98)
    assert look_level((32,), 0.02, most=64, last=False) == pytest.approx(0.995)  # a quarter of it
    assert look_level((32,), 0.02, most=None, last=False) == pytest.approx(0.99)  # half of it
    assert look_level((0,), 0.02, most=0, last=True) == 0.98  # nothing can be wrong


@pytest.mark.parametrize(("counts", "most"), [((), 64), ((32, 32), 64), ((48, 32), 64)])
def test_looks_must_grow(counts: tuple[int, ...], most: int) -> None:
    with pytest.raises(ValueError, match="looks need growing counts"):
        look_level(counts, 0.02, most=most, last=False)


growing = st.lists(st.integers(1, 200), min_size=1, max_size=8).map(
    lambda steps: tuple(accumulate(steps))
)


@given(growing, st.integers(1, 500), st.floats(1e-4, 0.2), st.booleans(), st.booleans())
def test_a_look_spends_more_than_a_union_bound_and_less_than_all(
    counts: tuple[int, ...], beyond: int, alpha: float, knows: bool, last: bool
) -> None:
    most = counts[-1] + beyond if knows else None
    found = 1 - look_level(counts, alpha, most=most, last=last)
    if most is None:
        shares = [0.0, *(1 - 2.0 ** -(k + 1) for k in range(len(counts)))]
    else:
        shares = [0.0, *((count / most) ** 2 for count in counts)]
    if last:
        shares[-1] = 1.0
    apart = alpha * (shares[-1] - shares[-2])
    assert 0.999 * apart <= found <= 1.001 * alpha * shares[-1]


@given(growing, st.integers(1, 500), st.sampled_from([2, 10, 127]))
def test_only_the_ratios_of_counts_matter(
    counts: tuple[int, ...], beyond: int, factor: int
) -> None:
    most = counts[-1] + beyond
    scaled = tuple(factor * count for count in counts)
    assert look_level(scaled, 0.02, most=factor * most, last=True) == pytest.approx(
        look_level(counts, 0.02, most=most, last=True), abs=1e-7
    )


@pytest.mark.parametrize("most", [160, None])
@pytest.mark.parametrize("counts", [(32, 40, 56, 72, 96, 120, 160), (32, 120, 121)])
def test_all_looks_together_are_wrong_as_often_as_they_may(
    counts: tuple[int, ...], most: int | None
) -> None:
    """Sums of normal values, looked at as often as they are; the last look may come early."""
    trials, alpha = 200_000, 0.02
    steps = np.diff(counts, prepend=0)
    noise = np.random.default_rng(0).standard_normal((trials, len(counts)))
    z = (noise * np.sqrt(steps)).cumsum(1) / np.sqrt(counts)
    levels = [
        look_level(counts[: k + 1], alpha, most=most, last=k + 1 == len(counts))
        for k in range(len(counts))
    ]
    crossed = z > stats.norm.isf((1 - np.array(levels)) / 2)
    rate, deviation = crossed.any(1).mean(), math.sqrt(alpha / 2 / trials)
    assert rate == pytest.approx(alpha / 2, abs=3.5 * deviation)
    naive = (z > stats.norm.isf(alpha / 2)).any(1).mean()
    assert naive > alpha / 2 + 10 * deviation  # what the correction is for


def test_noise_that_looks_share_makes_errors_rarer() -> None:
    """Steps of one process have its own deviation in common, which more of them do not shrink."""
    counts, trials = (8, 10, 13, 17, 22), 100_000
    rng = np.random.default_rng(1)
    own = (rng.standard_normal((trials, 5)) * np.sqrt(np.diff(counts, prepend=0))).cumsum(1)
    error = np.sqrt(0.2 + 1 / np.array(counts))
    z = (own / counts + math.sqrt(0.2) * rng.standard_normal((trials, 1))) / error
    levels = [look_level(counts[: k + 1], 0.02, most=None, last=k == 4) for k in range(5)]
    rate = (z > stats.norm.isf((1 - np.array(levels)) / 2)).any(1).mean()
    assert 0.004 < rate < 0.01
