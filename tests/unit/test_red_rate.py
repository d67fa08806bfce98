"""How often an unchanged run is red, and how small a slowdown is seen: simulated runs through the
real comparison. `pytest tests/unit/test_red_rate.py -m slow -s` prints the rates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bitgate.gates.tolerances import DEFAULTS
from bitgate.history.against import against
from bitgate.history.change import regressions
from bitgate.history.compare import combined
from bitgate.history.saved import SavedRun, Side
from bitgate.history.schema import Record
from bitgate.history.store import Reference

WINDOWS, TOKENS = 32, 127
QUALITY, SIZES, SPEEDS = 7, 7, 3  #: cases of the commit matrix, 17 in all
#: how two scores of a window differ, as a standard deviation in nats a token: from 8 bits beside a
#: lossless recipe to the solver switched off, on the packaged model and text
DIFFERENCES = (0.005, 0.054, 0.071, 0.076, 0.097, 0.099, 0.11)


class Simulated:
    """Runs of one unchanged project, whose scores and speeds vary as they are told.

    Speeds are of `launches` processes, by both clocks; the CPU's varies half as much.
    """

    def __init__(self, runs, seed, noise, between, launches=1):
        self.rng = np.random.default_rng(seed)
        self.launches = launches
        self.runs, self.noise, self.between = runs, noise, between
        self.base = self.rng.normal(3.4, 0.6, (QUALITY, WINDOWS)) * TOKENS
        self.count = 0
        self.still = {}

    def process(self, case, factor=1.0):
        """A speed, as one run measures it."""
        wall, cpu = np.array(
            [[scale * self.between(self.rng) for scale in (1, 0.5)] for _ in range(self.launches)]
        ).T
        record, _ = self.runs.speed(
            2.0 * factor * math.exp(wall.mean()),
            case=case,
            processes=self.launches,
            deviation=_deviation(wall),
            cpu=3.0 * factor * math.exp(cpu.mean()),
            cpu_deviation=_deviation(cpu),
        )
        return Record.model_validate(record)

    def sides(self, factor=1.0):
        found = dict(self.still if self.still and not self.noise else self.scored())
        self.still = dict(found)
        for at in range(SPEEDS):
            record = self.process(f"decode[{at}]", 1.0 if at else factor)
            found[record.case] = Side(record, "", {})
        return found

    def scored(self):
        """The cases whose speed does not count."""
        found = {}
        for at in range(QUALITY):
            sd = DIFFERENCES[at] * self.noise * TOKENS

            def moved(values, sd=sd):
                return values + sd * self.rng.normal(size=WINDOWS) if sd else values

            record, items = self.runs.quality(
                moved(self.base[at] + 20),
                case=f"perplexity[{at}]",
                base=self.base[at],
                kl=moved(np.full(WINDOWS, 0.26 * TOKENS)),
                same=np.clip(moved(np.full(WINDOWS, 0.72 * TOKENS)), 0, TOKENS),
            )
            items["tokens"] = np.full(WINDOWS, TOKENS)
            found[record["case"]] = Side(Record.model_validate(record), "", items)
        for at in range(SIZES):
            record, _ = self.runs.sizes(case=f"quantize[{at}]", size_mib=100, packed_layers=210)
            found[record["case"]] = Side(Record.model_validate(record), "", {})
        return found

    def saved(self):
        self.count += 1
        sides = self.sides()
        records = {case: (side.record,) for case, side in sides.items()}
        run = SavedRun(self.runs.folder, f"{self.count:04}", None, "", records, {}, 0)
        run.__dict__["_items"] = {(case, 0): side.items for case, side in sides.items()}
        return run

    def trial(self, factor=1.0):
        """Whether a run is red at first, and after a slow case was measured again."""
        history = [self.saved() for _ in range(8)]
        references = [
            Reference("latest", history, history),
            Reference("accepted", history[-1:], history),
        ]
        sides = self.sides(factor)
        first = against(sides, references, DEFAULTS)
        slow = {c.case for one in first for c in regressions(one.changes) if c.timed}
        again = {
            case: replace(
                side,
                record=combined(
                    side.record, self.process(case, factor if case == "decode[0]" else 1.0)
                ),
            )
            if case in slow
            else side
            for case, side in sides.items()
        }
        second = against(again, references, DEFAULTS) if slow else first
        return tuple(any(regressions(one.changes) for one in found) for found in (first, second))


def _deviation(logs):
    return float(logs.std(ddof=1)) if len(logs) > 1 else None


def normal(sd):
    return lambda rng: rng.normal(0, sd)


def heavy(sd):
    """One process in ten varies three times as much."""
    return lambda rng: rng.normal(0, sd * (3 if rng.random() < 0.1 else 1))


#: how scores vary, and processes; and how many of these a run has
NULL = {
    "scores to the bit, speed 5 %": (0, normal(0.05), 1),
    "scores to the bit, speed 10 %": (0, normal(0.10), 1),
    "scores to the bit, speed 7 % with heavy tails": (0, heavy(0.07), 1),
    "scores vary, speed 7 %": (1, normal(0.07), 1),
    "5 launches, speed 7 %": (0, normal(0.07), 5),
    "5 launches, speed 7 % with heavy tails": (0, heavy(0.07), 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", NULL)
def test_at_most_two_in_a_hundred_unchanged_runs_are_red(runs, what, capsys):
    trials = 600
    red = np.array([Simulated(runs, seed, *NULL[what]).trial() for seed in range(trials)])
    first, second = red.mean(axis=0)
    with capsys.disabled():
        print(f"\n{what}: {first:.1%} red at first, {second:.1%} in the end")  # noqa: T201
    # a rate of 2 % shows more than this in one of 2,000 simulations
    assert second <= 0.02 + 3.3 * math.sqrt(0.02 * 0.98 / trials)


@pytest.mark.slow
@pytest.mark.parametrize("launches", [1, 5])
@pytest.mark.parametrize("sd", [0.01, 0.02, 0.05, 0.1])
def test_power(runs, sd, launches, capsys):
    """How small a slowdown of one of the three cases is seen, as docs/history.md says."""
    trials, seen = 200, {}
    for slower in (0.05, 0.10, 0.20, 0.30, 0.5):
        simulated = (Simulated(runs, s, 0, normal(sd), launches) for s in range(trials))
        seen[slower] = np.mean([one.trial(1 - slower)[1] for one in simulated])
    with capsys.disabled():
        told = ", ".join(f"{slower:.0%}: {share:.0%}" for slower, share in seen.items())
        what = f"processes vary by {sd:.0%}, {launches} a run"
        print(f"\n{what}; slowdowns seen: {told}")  # noqa: T201
    assert sorted(seen.values()) == list(seen.values())
    # ten standard deviations are never overlooked
    assert all(share > 0.95 for slower, share in seen.items() if slower > 10 * sd)


def test_a_few_unchanged_runs_are_not_red(runs):
    red = [Simulated(runs, seed, 1, normal(0.07)).trial()[1] for seed in range(5)]
    assert sum(red) <= 1
