"""Timed rounds run while no other process of the host works."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from bitgate.plugin.budget import Budget
from bitgate.plugin.quiet import Quiet

WORKER = """
import json, sys, time
from bitgate.plugin.quiet import Quiet
quiet, times = Quiet(sys.argv[1] == "on", lambda seconds: None), {"work": [], "alone": []}
for number in range(6):
    with quiet.working():
        start = time.monotonic()
        time.sleep(0.03)
        times["work"].append((start, time.monotonic()))
        if number % 2 == int(sys.argv[2]):
            with quiet.alone():
                start = time.monotonic()
                time.sleep(0.03)
                times["alone"].append((start, time.monotonic()))
print(json.dumps(times))
"""


def run(monkeypatch, tmp_path, state):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, state, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in (0, 1)
    ]
    return [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]


def overlaps(timed, other):
    return sum(
        start < end_of_other and start_of_other < end
        for start, end in timed["alone"]
        for start_of_other, end_of_other in [*other["work"], *other["alone"]]
    )


def test_nobody_works_while_somebody_times(monkeypatch, tmp_path):
    one, two = run(monkeypatch, tmp_path, "on")
    assert len(one["alone"]) == len(two["alone"]) == 3
    assert overlaps(one, two) == overlaps(two, one) == 0


def test_without_the_lock_they_overlap(monkeypatch, tmp_path):
    """Or the test above could not fail."""
    one, two = run(monkeypatch, tmp_path, "off")
    assert overlaps(one, two) + overlaps(two, one) > 0


def test_waiting_is_counted_and_not_charged(monkeypatch, tmp_path):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    budget = Budget(60, {"case": 1.0})
    budget.plan(["case"])
    quiet = Quiet(True, budget.pause)
    budget.begin("case")
    before = budget.cost_so_far()
    quiet._wait(lambda: time.sleep(0.2))
    assert quiet.waited >= 0.2
    assert budget.cost_so_far() - before < 0.1
    assert not budget.is_over()
