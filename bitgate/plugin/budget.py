"""The time that a run may take, divided among its cases by what each has cost before."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import monotonic

from bitgate.catalog import CatalogError, read_toml

UNKNOWN_COST = 20.0  #: seconds, for a case when nothing has been recorded at all


class Budget:
    """Seconds in all, and the recorded cost of each case in seconds.

    Each case may go on sampling until its share of what is left is used up: its cost over that of
    all cases still to come. A case is not begun when what is left does not cover its cost.
    """

    def __init__(self, seconds: float | None, costs: dict[str, float], workers: int = 1) -> None:
        self.seconds = seconds
        self.workers = workers
        self.costs = costs
        self.usual = median(costs.values()) if costs else UNKNOWN_COST
        self.spent = 0.0  #: seconds, by the cases that have run
        self._expected = 0.0  #: what those cost before
        self._started = monotonic()
        self._begun = self._started
        self._waiting: set[str] = set()
        self._to_come = 0.0  #: what those that wait cost before
        self._until: float | None = None

    @classmethod
    def of(cls, seconds: float | None, recorded: Path, workers: int = 1) -> Budget:
        """With the costs that are recorded in a TOML file, if there is one."""
        tables = read_toml(recorded)
        if tables.keys() - {"seconds"}:
            raise CatalogError(f"{recorded}: expected one table, [seconds]")
        costs = tables.get("seconds", {})
        for key, value in costs.items():
            if not isinstance(value, (int, float)) or value < 0:
                raise CatalogError(f"{recorded}: seconds.{key}: expected a number of seconds")
        return cls(seconds, {key: float(value) for key, value in costs.items()}, workers)

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

    def start(self) -> None:
        self._started = monotonic()

    def plan(self, keys: list[str]) -> None:
        """These cases will run."""
        self._waiting = set(keys)
        self._to_come = sum(self.recorded(key) for key in self._waiting)

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

    def begin(self, key: str) -> None:
        self._begun = monotonic()
        if self.seconds is None:
            return
        still = max(self._pace * self._to_come, self.cost(key))
        left = self.seconds - self.used
        # every worker waits for all cases that it has not run itself, whoever runs them
        share = min(left, self.workers * left * self.cost(key) / still)
        self._until = self._begun + max(share, 0.0)

    def end(self, key: str) -> None:
        self.spent += self.cost_so_far()
        self._expected += self.recorded(key)
        if key in self._waiting:
            self._waiting.remove(key)
            self._to_come -= self.recorded(key)
        self._until = None

    def pause(self, seconds: float) -> None:
        """The case now running has waited for others: that is not its cost."""
        self._begun += seconds
        if self._until is not None:
            self._until += seconds

    def cost_so_far(self) -> float:
        """Seconds that the case now running has taken, its preparations included."""
        return monotonic() - self._begun

    def is_over(self) -> bool:
        """Whether the case now running has used up its share."""
        return self._until is not None and monotonic() > self._until
