"""The time that a run may take, divided among its cases by what each has cost before."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import monotonic, time

from bitgate.history.costs import read_costs
from bitgate.plugin.board import Board

TINY = 1e-9  #: seconds
UNKNOWN_COST = 20.0  #: seconds, for a case when nothing has been recorded at all


class Budget:
    """Seconds in all, and the recorded cost of each case in seconds.

    Each case may go on sampling until its share is used up. `n` workers have n seconds of work in
    every second that is left, less what those at work will still use of their shares; a case gets
    as much of that as its cost is of the costs of all cases not begun. Cases that are timed alone
    take the time of all n. A case is not begun when what is left does not cover its cost.
    """

    def __init__(
        self,
        seconds: float | None,
        costs: dict[str, float],
        workers: int = 1,
        neighbours: int | None = None,
    ) -> None:
        """`workers` take part in the run, `neighbours` of them on this host (by default, all)."""
        self.seconds = seconds
        self.workers = workers
        self.neighbours = neighbours or workers
        self.costs = costs
        self.usual = median(costs.values()) if costs else UNKNOWN_COST
        #: keys of cases that keep all others of the host waiting
        self.alone: set[str] = set()
        self.board: Board | None = None
        self.waited = 0.0  #: seconds that this process has waited for others of its host
        self.spent = 0.0  #: seconds that the cases have needed which have run
        self._expected = 0.0  #: what those cost before
        self._needed: float | None = None  #: seconds until the case now running could be judged
        self._started = monotonic()
        self._begun = self._started
        self._planned = 0.0  #: seconds of work in all cases of the run
        self._begun_work = 0.0  #: and in those that have begun, as far as this worker knows
        self._gone: set[str] = set()  #: these
        self._until: float | None = None

    @classmethod
    def of(
        cls,
        seconds: float | None,
        recorded: Path,
        workers: int = 1,
        neighbours: int | None = None,
    ) -> Budget:
        """With the costs that are recorded in a TOML file, if there is one."""
        return cls(seconds, read_costs(recorded), workers, neighbours)

    @property
    def minutes(self) -> str:
        return "no limit" if self.seconds is None else f"{self.seconds / 60:g} min"

    @property
    def left(self) -> float:
        """Seconds; infinite without a limit."""
        return float("inf") if self.seconds is None else self.seconds - self.used

    @property
    def used(self) -> float:
        return monotonic() - self._started

    def start(self, before: float = 0.0) -> None:
        """The run began so many seconds ago."""
        self._started = monotonic() - before

    def plan(self, keys: list[str]) -> None:
        """These cases will run, here or in another worker."""
        self._planned = sum(map(self._work, keys))

    def add(self, key: str, seconds: float) -> None:
        """This case costs so much more now than when it was recorded."""
        self.costs[key] = self.recorded(key) + seconds

    def cost(self, key: str) -> float:
        """What a case will cost: as recorded, or else as usual, at the pace of this run."""
        return self._pace * self.recorded(key)

    def recorded(self, key: str) -> float:
        """What a case has cost before, or else what is usual."""
        return self.costs.get(key, self.usual)

    @property
    def _pace(self) -> float:
        """How much slower than the recorded costs this machine is, from the cases that have run;
        a faster one is not trusted, as the next case may be a slow one."""
        return max(1.0, self.spent / self._expected) if self._expected else 1.0

    def refuses(self, key: str) -> bool:
        """Whether too little is left to begin."""
        return self.cost(key) > self.left

    def why_not(self, key: str) -> str:
        """Why a case that is refused is not begun, and what can be done."""
        waited = (
            f", {self.waited:.0f} s of which this process has waited for others of its host"
            if self.waited >= 1
            else ""
        )
        return (
            f"not measured: it needs about {self.cost(key):.0f} s, and {max(self.left, 0):.0f} s "
            f"are left of the budget of {self.minutes}{waited}; raise --budget or run fewer cells"
        )

    def begin(self, key: str) -> None:
        self._begun = monotonic()
        self._needed = None
        if self.seconds is None:
            return
        share = self._share(key)
        self._until = self._begun + share
        if self.board is not None:
            self.board.tell(key, share)

    def _share(self, key: str) -> float:
        """Seconds that a case may take."""
        workers = 1  # that this one knows of; the others will have done as much in their time
        others: list[float] = []
        if self.board is not None:
            for case in self.board.look():
                self._goes(case)
            workers = self.neighbours
            others = [
                # who waits to be alone will use all of its share
                self._weight(case) * (work.share if case in self.alone else work.until - time())
                for case, work in self.board.at_work(workers - 1)
            ]
        free = workers * self.left - sum(max(seconds, 0.0) for seconds in others)
        to_come = self._planned * workers / self.workers - self._begun_work
        self._goes(key)
        share = free * self.recorded(key) / max(to_come, self._work(key), TINY)
        return max(0.0, min(share, self.left))

    def _goes(self, key: str) -> None:
        if key not in self._gone:
            self._gone.add(key)
            self._begun_work += self._work(key)

    def _work(self, key: str) -> float:
        """What a case cost before, in seconds of one worker."""
        return self._weight(key) * self.recorded(key)

    def _weight(self, key: str) -> int:
        """How many workers of this host a case occupies."""
        return self.neighbours if key in self.alone else 1

    def enough(self) -> None:
        """The case now running could be judged now; what more it takes is a matter of its share."""
        if self._needed is None:
            self._needed = self.cost_so_far()

    def end(self, key: str) -> None:
        seconds = self.cost_so_far()
        if self._needed is not None and self.is_over():  # the rest was only there to be used
            seconds = self._needed
        self.spent += seconds
        self._expected += self.recorded(key)
        self._until = None
        if self.board is not None and self.seconds is not None:
            self.board.tell(key, None)

    def pause(self, seconds: float) -> None:
        """The case now running has waited for others: that is not its cost, but time of the run,
        which ends when its time is over."""
        self.waited += seconds
        self._begun += seconds
        if self._until is not None:
            self._until += seconds

    def cost_so_far(self) -> float:
        """Seconds that the case now running has taken, its preparations included."""
        return monotonic() - self._begun

    def is_over(self) -> bool:
        """Whether the case now running has used up its share, or the run its time: a case that has
        waited for others may use its share later, but none that is no longer there."""
        return self._until is not None and (monotonic() > self._until or self.left <= 0)
