"""Which way of finding change points finds most at equally few false alarms.

    tox -e drift                    all methods, on all series (half an hour)
    tox -e drift -- --series 40     a quick look
    tox -e drift -- --json FILE     all rates, by method, kind of series and length

Every method sees the same series. Its significance level is the largest of a grid with at most 2 %
false alarms on steady normal noise, so that detections can be compared. Apache Otava pins an old
numpy: it gets an environment of its own, made where --otava says. docs/drift.md has the result.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import venv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import ruptures
from numpy.typing import NDArray
from scipy import special, stats

from bitgate.history.changepoint import LEAST, change_points

HERE = Path(__file__).parent
RECORDED = HERE / "drift_recorded.csv"
OTAVA = "apache-otava==0.8.0"
SPREAD = 0.05
LENGTHS = (8, 12, 20, 40)
LONG = 100  #: runs, for some kinds
NEAR = 2  #: runs that a change may be off
AFTER = (2, 3, 4, 5, 6, 8)  #: runs after the change, of 12 before it
FALSE = 0.02
LEVELS = (0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.001, 0.0003, 0.0001)

Array = NDArray[np.float64]
#: indices of changes in values at a significance level
Method = Callable[[Array, float], list[int]]


# --- series --------------------------------------------------------------------------------


@dataclass
class Group:
    """Series of one kind and length; `truth` is where each changes, nothing if it is steady."""

    kind: str
    length: int
    series: list[list[float]] = field(default_factory=list)
    truth: list[list[int]] = field(default_factory=list)

    def add(self, values: Array, truth: list[int]) -> None:
        self.series.append(values.tolist())
        self.truth.append(truth)


def noise(kind: str, n: int, rng: np.random.Generator) -> Array:
    """Of unit deviation."""
    x = rng.standard_normal(n)
    if kind == "heavy tails":
        return rng.standard_t(3, n) / math.sqrt(3)
    if kind == "outliers":  # one value in twenty is five deviations off
        return x + 5 * rng.choice([-1, 1], n) * (rng.random(n) < 0.05)
    if kind == "autocorrelated":
        for i in range(1, n):
            x[i] = 0.5 * x[i - 1] + math.sqrt(0.75) * x[i]
    return x


def levels(n: int, step: float, changes: int, rng: np.random.Generator) -> tuple[Array, list[int]]:
    """Logarithms of the levels; up or down, with at least LEAST runs at each."""
    size = math.log(1 + step) * rng.choice([-1, 1])
    first = int(rng.integers(LEAST, n - LEAST * changes + 1))
    level = np.zeros(n)
    if changes == 1:
        level[first:] = size
        return level, [first]
    second = int(rng.integers(first + LEAST, n - LEAST + 1))
    level[first:second] = size
    return level, [first, second]


def synthetic(count: int) -> Iterator[Group]:
    rng = np.random.default_rng(0)
    for kind in ("normal", "heavy tails", "outliers", "autocorrelated"):
        for n in (*LENGTHS, LONG) if kind == "normal" else LENGTHS:
            group = Group(f"steady, {kind}", n)
            for _ in range(count):
                group.add(np.exp(SPREAD * noise(kind, n, rng)), [])
            yield group
    for kind, step, changes in (
        *(("normal", step, 1) for step in (0.05, 0.1, 0.2)),
        ("heavy tails", 0.2, 1),
        ("outliers", 0.2, 1),
        ("normal", 0.1, 2),
        ("normal", 0.2, 2),
    ):
        for n in (*LENGTHS, LONG) if step == 0.1 else LENGTHS:
            if n < LEAST * (changes + 1):
                continue
            what = "there and back" if changes == 2 else "step"
            group = Group(f"{what} {step:.0%}, {kind}", n)
            for _ in range(count):
                level, truth = levels(n, step, changes, rng)
                group.add(np.exp(level + SPREAD * noise(kind, n, rng)), truth)
            yield group
    for n in LENGTHS:  # any change in the ramp, or NEAR it, is one of it
        group = Group("ramp to 20%, normal", n)
        start = n // 3
        for _ in range(count):
            level = np.maximum(0, np.arange(n) - start + 1) * math.log(1.2) / (n - start)
            group.add(np.exp(level + SPREAD * noise("normal", n, rng)), list(range(start, n)))
        yield group
    for after in AFTER:
        group = Group("step 20%, so many runs ago", after)
        for _ in range(count):
            x = SPREAD * noise("normal", 12 + after, rng)
            x[12:] += math.log(1.2)
            group.add(np.exp(x), [12])
        yield group


def recorded() -> Iterator[Group]:
    """Windows of what was recorded, as it was and with a step put in."""
    with RECORDED.open() as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(1)
    for column in ("ratio", "ms"):
        x = np.log([float(row[column]) for row in rows])
        for n in LENGTHS[1:]:
            steady = Group(f"recorded {column}, as it was", n)
            changed = Group(f"recorded {column}, step 60%", n)
            for start in range(0, len(x) - n + 1, 3):
                window = x[start : start + n]
                steady.add(np.exp(window), [])
                level, truth = levels(n, 0.6, 1, rng)
                changed.add(np.exp(window + level), truth)
            yield steady
            if column == "ratio":
                yield changed


# --- methods -------------------------------------------------------------------------------


def chosen(x: Array, alpha: float) -> list[int]:
    return [point.at for point in change_points(np.log(x), alpha)]


def pelt(test: Callable[[Array, Array], float], *, ranks: bool = False) -> Method:
    """PELT's candidates, the weakest dropped until all are significant."""

    def find(values: Array, alpha: float) -> list[int]:
        x = stats.rankdata(values) if ranks else np.log(values)
        scale = x.std() if ranks else np.median(np.abs(np.diff(x))) / 0.6745 / math.sqrt(2)
        search = ruptures.KernelCPD(kernel="linear", min_size=LEAST).fit((x / scale)[:, None])
        places = search.predict(pen=2 * math.log(len(x)))[:-1]
        while places:
            ends = [0, *places, len(x)]
            ps = [test(x[a:b], x[b:c]) for a, b, c in zip(ends, ends[1:], ends[2:], strict=False)]
            if max(ps) <= alpha:
                return [int(place) for place in places]
            del places[int(np.argmax(ps))]
        return []

    return find


def welch(a: Array, b: Array) -> float:
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    p = 2 * special.stdtr(freedom, -abs(a.mean() - b.mean()) / math.sqrt(va + vb))
    return float(min(1, p * (len(a) + len(b) - 2 * LEAST + 1)))


def mann_whitney(a: Array, b: Array) -> float:
    return float(stats.mannwhitneyu(a, b).pvalue)


def splits(x: Array) -> tuple[NDArray[np.intp], Array]:
    """Of each row of x: the best place to split it, and the largest |t| there."""
    n = x.shape[-1]
    k = np.arange(LEAST, n - LEAST + 1)
    centred = x - x.mean(-1, keepdims=True)
    between = np.cumsum(centred, -1)[..., k - 1] ** 2 * n / (k * (n - k))
    within = (centred**2).sum(-1, keepdims=True) - between
    f = between / within * (n - 2)
    return k[f.argmax(-1)], np.sqrt(f.max(-1))


def binary(test: Callable[[Array, float], float]) -> Method:
    """Split in two where |t| is largest, if that is significant; then each half."""

    def find(values: Array, alpha: float) -> list[int]:
        x = np.log(values)
        places, parts = [], [(0, len(x))]
        while parts:
            start, end = parts.pop()
            if end - start < 2 * LEAST:
                continue
            at, t = splits(x[start:end])
            if test(x[start:end], float(t)) <= alpha:
                places.append(start + int(at))
                parts += [(start, places[-1]), (places[-1], end)]
        return sorted(places)

    return find


def student(x: Array, t: float) -> float:
    return float(2 * special.stdtr(len(x) - 2, -t) * (len(x) - 2 * LEAST + 1))


def permutations(x: Array, t: float, count: int = 999) -> float:
    shuffled = np.random.default_rng(0).permuted(np.tile(x, (count, 1)), axis=1)
    return float(1 + (splits(shuffled)[1] >= t - 1e-9).sum()) / (count + 1)


#: with the levels that make sense for each, and series of each group (None: all) for slow ones
METHODS: dict[str, tuple[Method, tuple[float, ...], int | None]] = {
    "PELT, t": (chosen, LEVELS, None),
    "PELT, Welch": (pelt(welch), LEVELS, None),
    "PELT, Mann-Whitney": (pelt(mann_whitney), LEVELS[3:6], 25),
    "PELT of ranks, Mann-Whitney": (pelt(mann_whitney, ranks=True), LEVELS[3:6], 25),
    "binary, t": (binary(student), LEVELS[:6], None),
    "binary, permutations": (binary(permutations), LEVELS[1:4], 25),
}
IN_OTAVA = {
    "Otava, window 2n": (LEVELS[6:], 50),
    "Otava as it comes": ((0.001,), 50),
    "Otava, permutations": ((0.01,), 8),
}


# --- running -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a method found: by level, for each group and series, indices or an error's name."""

    found: dict[float, list[list[list[int] | str]]]
    seconds: float

    @property
    def milliseconds(self) -> float:
        calls = sum(len(series) for groups in self.found.values() for series in groups)
        return 1e3 * self.seconds / calls


def run_here(groups: list[Group], name: str) -> Outcome:
    method, grid, count = METHODS[name]
    start = perf_counter()
    found = {
        p: [[attempt(method, np.array(x), p) for x in group.series[:count]] for group in groups]
        for p in grid
    }
    return Outcome(found, perf_counter() - start)


def attempt(method: Method, x: Array, p: float) -> list[int] | str:
    try:
        return method(x, p)
    except Exception as error:  # crashes are counted
        return type(error).__name__


def run_otava(groups: list[Group], folder: Path) -> dict[str, Outcome]:
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"installing {OTAVA} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", OTAVA], check=True)
    asked = {"series": [group.series for group in groups], "methods": IN_OTAVA}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, HERE / "drift_otava.py"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    return {
        name: Outcome({float(p): f for p, f in answer["found"].items()}, answer["seconds"])
        for name, answer in json.loads(done.stdout).items()
    }


# --- rates ---------------------------------------------------------------------------------


@dataclass
class Rates:
    """Of one group: the share of changes found (of series with any, if steady), of points that are
    at no change, per series, and of crashes."""

    kind: str
    length: int
    found: float
    elsewhere: float
    crashed: float


def rates(group: Group, found: list[list[int] | str]) -> Rates:
    hits, others, crashes = [], [], 0
    for truth, points in zip(group.truth, found, strict=False):
        if isinstance(points, str):
            crashes += 1
            points = []
        near = [any(abs(point - at) <= NEAR for point in points) for at in truth]
        wrong = sum(all(abs(point - at) > NEAR for at in truth) for point in points)
        ramp = group.kind.startswith("ramp")
        hits.append(any(near) if ramp else float(np.mean(near)) if truth else bool(points))
        others.append(wrong)
    return Rates(
        group.kind,
        group.length,
        float(np.mean(hits)),
        float(np.mean(others)),
        crashes / len(found),
    )


def at_equal_alarms(groups: list[Group], outcome: Outcome) -> tuple[float, list[Rates]]:
    """The largest level with at most FALSE false alarms on steady normal noise, and its rates."""
    answer: tuple[float, list[Rates]] | None = None
    for p, found in sorted(outcome.found.items()):
        all_rates = [rates(group, of) for group, of in zip(groups, found, strict=True)]
        alarms = float(np.mean([r.found for r in all_rates if r.kind == "steady, normal"]))
        if answer is None or alarms <= FALSE:
            answer = p, all_rates
    assert answer is not None
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--series", type=int, default=100, help="of each kind and length")
    parser.add_argument("--otava", type=Path, default=HERE.parent / ".tox" / "otava")
    parser.add_argument("--without-otava", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of tests on values that are all alike

    groups = [*synthetic(options.series), *recorded()]
    outcomes = {} if options.without_otava else run_otava(groups, options.otava)
    for name in METHODS:
        outcomes[name] = run_here(groups, name)
        print(f"{name}: {outcomes[name].seconds:.0f} s", file=sys.stderr)
    result = {name: at_equal_alarms(groups, outcome) for name, outcome in outcomes.items()}
    report(groups, outcomes, result)
    if options.json:
        written = {
            name: {"level": p, "rates": [vars(r) for r in all_rates]}
            for name, (p, all_rates) in result.items()
        }
        options.json.write_text(json.dumps(written, indent=1), "utf-8")
    return 0


def report(
    groups: list[Group],
    outcomes: dict[str, Outcome],
    result: dict[str, tuple[float, list[Rates]]],
) -> None:
    """Markdown: one line per method and kind, a column per length."""
    print("| method | level | crashes | points elsewhere, per series | ms per series |")
    print("|---|---|---|---|---|")
    for name, (p, all_rates) in result.items():
        crashed = np.mean([r.crashed for r in all_rates])
        elsewhere = np.mean([r.elsewhere for r in all_rates if not r.kind.endswith("as it was")])
        ms = outcomes[name].milliseconds
        print(f"| {name} | {p:g} | {crashed:.1%} | {elsewhere:.3f} | {ms:.1f} |")
    for kind in dict.fromkeys(group.kind for group in groups):
        lengths = [group.length for group in groups if group.kind == kind]
        print(f"\n| {kind}: % found | " + " | ".join(map(str, lengths)) + " |")
        print("|---|" + "---|" * len(lengths))
        for name, (_, all_rates) in result.items():
            shares = [f"{100 * r.found:.0f}" for r in all_rates if r.kind == kind]
            print(f"| {name} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    sys.exit(main())
