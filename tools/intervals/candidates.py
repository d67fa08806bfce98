"""Intervals to choose from, of many samples at once: values of shape (samples, n) and a level give
lower and upper limits of shape (samples,)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from bitgate import statistics

Array = NDArray[np.float64]
Limits = tuple[Array, Array]
Candidate = Callable[[Array, float], Limits]
RESAMPLES = 4000
TOKENS = 127


def _moments(x: Array, level: float) -> tuple[Array, Array, Array, float]:
    """Mean, standard error, skewness over sqrt(n) and Student's quantile."""
    n = x.shape[1]
    mean, deviation = x.mean(1), np.maximum(x.std(1, ddof=1), 1e-300)
    third = ((x - mean[:, None]) ** 3).sum(1) * n / ((n - 1) * (n - 2))
    g = third / deviation**3 / math.sqrt(n)
    return mean, deviation / math.sqrt(n), g, float(stats.t.isf((1 - level) / 2, n - 1))


# --- means ---------------------------------------------------------------------------------


def student(x: Array, level: float) -> Limits:
    mean, error, _, q = _moments(x, level)
    return mean - q * error, mean + q * error


def log_t(x: Array, level: float) -> Limits:
    """Student's t of the logarithm of the mean, by the delta method."""
    mean, error, _, q = _moments(x, level)
    return mean * np.exp(-q * error / mean), mean * np.exp(q * error / mean)


def johnson(x: Array, level: float) -> Limits:
    """Johnson, JASA 73, 1978, 536-544."""
    mean, error, g, q = _moments(x, level)
    shift = error * g * (1 / 6 + q * q / 3)
    return mean + shift - q * error, mean + shift + q * error


def hall(x: Array, level: float) -> Limits:
    """Hall, JRSS B 54, 1992, 221-228, at Student's quantiles."""
    mean, error, g, q = _moments(x, level)

    def inverse(transformed: float) -> Array:
        root = np.cbrt(1 + g * (transformed - g / 6))
        return 3 * (transformed - g / 6) / (root * root + root + 1)

    return mean - inverse(q) * error, mean - inverse(-q) * error


def _resampled(x: Array) -> tuple[Array, Array, Array, Array]:
    """Mean and standard error of the samples, and of their resamples less the mean.

    All samples share the resampling weights, which makes this a product of matrices. What is
    estimated stays unbiased.
    """
    n = x.shape[1]
    rng = np.random.default_rng(0)
    weights = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
    mean = x.mean(1)
    centred = (x - mean[:, None]).T
    means = weights @ centred
    variance = np.maximum(weights @ centred**2 - means**2, 1e-300) * n / (n - 1)
    return mean, x.std(1, ddof=1) / math.sqrt(n), means, np.sqrt(variance / n)


def _in_parts(of: Candidate) -> Candidate:
    def parts(x: Array, level: float) -> Limits:
        found = [of(x[start : start + 500], level) for start in range(0, len(x), 500)]
        return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])

    return parts


@_in_parts
def bootstrap_t(x: Array, level: float) -> Limits:
    """Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5."""
    mean, error, means, errors = _resampled(x)
    low, high = np.quantile(means / errors, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return mean - high * error, mean - low * error


@_in_parts
def bootstrap_log_t(x: Array, level: float) -> Limits:
    """The same of the logarithm of the mean, which stabilizes a variance that grows with it."""
    mean, error, means, errors = _resampled(x)
    means = np.maximum(means + mean, 1e-300)
    t = (np.log(means) - np.log(mean)) / (errors / means)
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], axis=0)
    with np.errstate(over="ignore"):
        return mean * np.exp(-high * error / mean), mean * np.exp(-low * error / mean)


@_in_parts
def bca(x: Array, level: float) -> Limits:
    """Efron, JASA 82, 1987, 171-185."""
    n = x.shape[1]
    mean, _, means, _ = _resampled(x)
    means.sort(axis=0)
    below = np.clip((means < 0).mean(0), 1 / RESAMPLES, 1 - 1 / RESAMPLES)
    bias, acceleration = special.ndtri(below), stats.skew(x, axis=1) / (6 * math.sqrt(n))
    limits = []
    for z in special.ndtri([(1 - level) / 2, (1 + level) / 2]):
        p = special.ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        rank = np.clip((p * RESAMPLES).astype(int), 0, RESAMPLES - 1)
        limits.append(mean + np.take_along_axis(means, rank[None], 0)[0])
    return limits[0], limits[1]


def skewed_t(x: Array, level: float) -> Limits:
    """The suite's own."""
    found = [statistics.skewed_t(sample, level) for sample in x]
    return np.array([e.low for e in found]), np.array([e.high for e in found])


MEANS: dict[str, Candidate] = {
    "Student t": student,
    "log t": log_t,
    "Johnson": johnson,
    "Hall": hall,
    "bootstrap-t": bootstrap_t,
    "bootstrap-t of log": bootstrap_log_t,
    "BCa": bca,
    "skewed_t": skewed_t,
}


# --- shares: values are how many of TOKENS tokens agree in each window -----------------------


def _share(x: Array, level: float) -> tuple[Array, Array, Array, float]:
    """Share, its standard error over windows, the effective n, and Student's quantile."""
    k = x.shape[1]
    share, error = x.mean(1) / TOKENS, x.std(1, ddof=1) / TOKENS / math.sqrt(k)
    quantile, z = stats.t.isf((1 - level) / 2, k - 1), stats.norm.isf((1 - level) / 2)
    binomial = share * (1 - share) / (k * TOKENS)
    inside = (share > 0) & (share < 1)
    effect = np.where(inside, np.maximum(1, error**2 / np.where(inside, binomial, 1)), 1)
    return share, error, k * TOKENS / effect * (z / quantile) ** 2, float(quantile)


def linear_t(x: Array, level: float) -> Limits:
    share, error, _, q = _share(x, level)
    return share - q * error, share + q * error


def logit_t(x: Array, level: float) -> Limits:
    """Student's t of the logit, by the delta method; the design effect is at least 1."""
    share, error, _, q = _share(x, level)
    n = x.shape[1] * TOKENS
    error = np.maximum(error, np.sqrt(share * (1 - share) / n))
    share = np.clip(share, 0.5 / n, 1 - 0.5 / n)
    half = q * error / (share * (1 - share))
    return special.expit(special.logit(share) - half), special.expit(special.logit(share) + half)


def korn_graubard(x: Array, level: float) -> Limits:
    """Clopper-Pearson at the effective n (Survey Methodology 24, 1998, 193-201)."""
    share, _, n, _ = _share(x, level)
    a, hits = (1 - level) / 2, share * n
    low = np.nan_to_num(stats.beta.ppf(a, hits, n - hits + 1), nan=0.0)
    return low, np.nan_to_num(stats.beta.isf(a, hits + 1, n - hits), nan=1.0)


def _library(of: Callable[[Array, Array, float], statistics.Estimate]) -> Candidate:
    def limits(x: Array, level: float) -> Limits:
        sizes = np.full(x.shape[1], float(TOKENS))
        found = [of(sample, sizes, level) for sample in x]
        return np.array([e.low for e in found]), np.array([e.high for e in found])

    return limits


SHARES: dict[str, Candidate] = {
    "linear t": linear_t,
    "logit t": logit_t,
    "Korn-Graubard": korn_graubard,
    "Hall": lambda x, level: hall(x / TOKENS, level),
    "clustered_wilson": _library(statistics.clustered_wilson),
    "clustered_share": _library(statistics.clustered_share),
}
