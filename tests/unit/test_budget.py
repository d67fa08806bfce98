"""The time of a run, divided among cases and workers: used up where it is needed, never more."""

from __future__ import annotations

import random

import pytest

from bitgate.plugin import board, budget
from bitgate.plugin.board import Board
from bitgate.plugin.budget import Budget

pytest_plugins = ["pytester"]

STEP = 1.0  #: seconds between two looks at the clock


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module, name in ((budget, "monotonic"), (budget, "time"), (board, "time")):
        monkeypatch.setattr(module, name, clock)
    return clock


class Run:
    """Cases run by workers that look at one clock, the way the plugin runs them: whoever is free
    takes the next case; those in `alone` wait until nobody else works, and then nobody else does.

    `needs` says how many seconds a case takes until it is decided; the others never are.
    """

    def __init__(self, clock, folder, seconds, costs, workers, *, alone=(), needs=None, known=True):
        self.clock, self.costs, self.alone, self.needs = clock, costs, set(alone), needs or {}
        self.budgets = [
            self.worker(folder, seconds, workers, number, known) for number in range(workers)
        ]
        self.queue = sorted(costs, key=lambda key: key in self.alone)
        self.at = [None] * workers
        self.timing = None  #: the worker that is alone
        self.waiting = []
        self.since = {}
        self.took, self.refused = {}, []
        self.begun, self.ended = clock.now, clock.now
        self.crashes = {}  #: workers that die, by when

    def worker(self, folder, seconds, workers, number, known):
        made = Budget(seconds, dict(self.costs), workers, workers if known else 1)
        made.alone = self.alone
        made.plan(list(self.costs))
        made.start()
        if known and workers > 1:
            made.board = Board(folder / "board.jsonl", number)
        return made

    def go(self):
        while self.queue or any(self.at):
            for number, used in enumerate(self.budgets):
                self.step(number, used)
            assert self.clock.now - self.begun < 100_000
            self.clock.now += STEP
        return self

    def step(self, number, used):
        case = self.at[number]
        if case is not None and number in self.waiting:
            if self.timing is None and all(
                at is None or other in self.waiting for other, at in enumerate(self.at)
            ):
                self.waiting.remove(number)
                self.timing = number
                used.pause(self.clock.now - self.since[number])
                self.since[number] = self.clock.now
            return
        if case is not None:
            took = self.clock.now - self.since[number]
            if took >= self.costs[case]:
                used.enough()
            if took < self.costs[case] or not (used.is_over() or took >= self.needs.get(case, 1e9)):
                return
            used.end(case)
            self.took[case] = took
            self.ended = self.clock.now
            self.at[number] = None
            if self.timing == number:
                self.timing = None
        if self.timing is not None or self.waiting:
            return  # nobody begins to work
        while self.queue and self.at[number] is None:
            key = self.queue.pop(0)
            used.begin(key)
            if used.refuses(key):
                self.refused.append(key)
                used.end(key)
                continue
            self.at[number], self.since[number] = key, self.clock.now
            if key in self.alone:
                self.waiting.append(number)

    @property
    def seconds(self):
        return self.ended - self.begun


def costs(count, spread, seed=0):
    """As many cases whose costs differ by up to a factor."""
    chosen = random.Random(seed)
    return {f"case{number}": 10 * spread ** chosen.random() for number in range(count)}


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize(("count", "spread"), [(40, 1), (37, 4), (9, 3)])
def test_undecided_cases_use_the_whole_budget(clock, tmp_path, workers, count, spread):
    run = Run(clock, tmp_path, 3600, costs(count, spread), workers).go()
    assert run.refused == []
    assert 0.95 * 3600 <= run.seconds <= 3600 + 2 * STEP
    # and all workers have, not the last one alone
    assert sum(run.took.values()) >= 0.9 * 3600 * min(workers, count)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_cases_that_are_timed_alone_share_what_all_have(clock, tmp_path, workers):
    all_costs = costs(24, 3)
    alone = list(all_costs)[::3]
    run = Run(clock, tmp_path, 3600, all_costs, workers, alone=alone).go()
    assert run.refused == []
    assert 0.9 * 3600 <= run.seconds <= 3600 + 2 * STEP
    shares = [run.took[key] / all_costs[key] for key in alone]
    assert min(shares) > 1.5, "each gets more than it needs"


@pytest.mark.parametrize("workers", [2, 4])
def test_what_decided_cases_leave_goes_to_the_others(clock, tmp_path, workers):
    all_costs = costs(40, 3)
    decided = dict(list(all_costs.items())[::2])
    run = Run(clock, tmp_path, 3600, all_costs, workers, needs=decided).go()
    assert run.refused == []
    assert 0.95 * 3600 <= run.seconds <= 3600 + 2 * STEP


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_that_know_nothing_of_each_other(clock, tmp_path, workers):
    """As on hosts of their own."""
    run = Run(clock, tmp_path, 3600, costs(40, 2), workers, known=False).go()
    assert run.refused == []
    assert 0.9 * 3600 <= run.seconds <= 3600 + 2 * STEP


@pytest.mark.parametrize("seed", range(5))
def test_never_more_than_the_budget(clock, tmp_path, seed):
    chosen = random.Random(seed)
    all_costs = costs(60, 20, seed)
    needs = {key: chosen.uniform(1, 5) * all_costs[key] for key in list(all_costs)[::2]}
    run = Run(
        clock, tmp_path, 1200, all_costs, 1 + seed, alone=list(all_costs)[::5], needs=needs
    ).go()
    # what is begun is finished as far as it must be; waiting to be alone can make that late
    assert run.seconds <= 1200 + max(all_costs.values())


def test_a_worker_that_replaces_another_goes_on_with_its_time(clock, tmp_path):
    all_costs = costs(40, 2)
    run = Run(clock, tmp_path, 3600, all_costs, 4)
    for _ in range(int(1800 / STEP)):
        for number, used in enumerate(run.budgets):
            run.step(number, used)
        clock.now += STEP
    lost = run.at[2]
    run.budgets[2] = run.worker(tmp_path, 3600, 4, 99, known=True)
    run.budgets[2].start(clock.now - run.begun)
    run.at[2] = None
    run.go()
    assert run.refused == []
    assert set(run.took) == set(all_costs) - {lost}
    assert 0.95 * 3600 <= run.seconds <= 3600 + 2 * STEP


def test_sampling_on_is_not_taken_for_a_slow_machine(clock):
    used = Budget(1000, {"a": 10.0, "b": 10.0})
    used.plan(["a", "b"])
    used.begin("a")
    clock.now += 12
    used.enough()
    while not used.is_over():
        clock.now += 1
    assert used.used > 500
    used.end("a")
    assert used.cost("b") == 12


def test_a_slow_machine_is_known_by_what_had_to_be(clock):
    used = Budget(100, {"a": 10.0, "b": 10.0})
    used.plan(["a", "b"])
    used.begin("a")
    clock.now += 60
    assert used.is_over()
    used.end("a")
    assert used.cost("b") == 60
    assert used.refuses("b")


def test_waiting_extends_a_share_but_not_the_run(clock):
    used = Budget(100, {"a": 10.0, "b": 10.0})
    used.plan(["a", "b"])
    used.begin("a")
    clock.now += 45
    used.pause(30)
    clock.now += 30
    assert not used.is_over()
    clock.now += 26
    assert used.is_over()


def test_a_line_that_is_being_written_is_read_later(tmp_path):
    mine, other = (Board(tmp_path / "board.jsonl", number) for number in range(2))
    other.tell("a", 60.0)
    whole = mine.path.read_bytes()
    mine.path.write_bytes(whole[:-5])
    assert mine.look() == []
    mine.path.write_bytes(whole)
    assert mine.look() == ["a"]
    ((key, work),) = mine.at_work(1)
    assert (key, work.share) == ("a", 60.0)
    other.tell("a", None)
    other.tell("b", 5.0)
    mine.tell("c", 5.0)
    assert mine.look() == ["a", "b", "c"]
    assert [key for key, _ in mine.at_work(1)] == ["b"]


def test_who_was_killed_is_at_nothing(tmp_path):
    """There are no more others than workers beside this one."""
    boards = [Board(tmp_path / "board.jsonl", number) for number in range(4)]
    for number, key in ((1, "a"), (2, "b"), (3, "c")):
        boards[number].tell(key, 60.0)
    boards[0].look()
    assert [key for key, _ in boards[0].at_work(2)] == ["b", "c"]
    assert boards[0].at_work(0) == []


def test_a_replacement_knows_when_the_run_began(free_project, pytester):
    """In a real run, whose worker is killed after a while."""
    free_project(pytester.path)
    (pytester.path / "bench" / "test_quantize.py").write_text(
        "import os, signal, time\n"
        "import pytest\n"
        "from bitgate.plugin.session import session_of\n"
        '@pytest.mark.workload("quantize")\n'
        "def test_quantize(case, request):\n"
        "    used = session_of(request.config).budget.used\n"
        "    with open('began.txt', 'a') as file:\n"
        "        file.write(f'{os.getpid()} {time.time() - used}\\n')\n"
        "    if not os.path.exists('killed'):\n"
        "        open('killed', 'w').close()\n"
        "        time.sleep(3)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = pytester.runpytest_subprocess("bench", "-n", "1", "-m", "quantize", timeout=240)
    done.assert_outcomes(passed=1, failed=1)
    lines = [line.split() for line in (pytester.path / "began.txt").read_text().splitlines()]
    (first, began), (second, also_began) = lines
    assert first != second
    assert float(also_began) == pytest.approx(float(began), abs=0.5)
