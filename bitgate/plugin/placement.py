"""Which worker gets which cell next.

Nothing is dealt out beforehand: a worker that is about to be free takes the next cell, all of it,
so that each cell is quantized once. It keeps to the model that it has loaded; after that it takes
one that nobody else works on, and only then helps with another's. Within a model dear cells come
first, as what is left at the end should be small; cells that are timed come last, when fewer others
have to keep quiet for them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """What is known of a test before it runs; one that is no case is a cell of its own."""

    cell: str
    model: str = ""
    timed: bool = False
    cost: float = 0.0  #: seconds, as recorded


@dataclass(order=True)
class Unit:
    """The tests of a cell that are still to run, in order."""

    order: tuple[bool, float, int]
    tests: list[int] = field(compare=False)


class Placement:
    """The tests that no worker has yet, by their numbers in the collection."""

    def __init__(self, tests: Sequence[Job]) -> None:
        self.tests = tests
        self._waiting: dict[str, list[Unit]] = {}
        self._loaded: dict[Hashable, str] = {}

    def __len__(self) -> int:
        """How many cells wait."""
        return sum(len(units) for units in self._waiting.values())

    def put(self, numbers: Iterable[int]) -> None:
        """These tests wait for a worker, for the first time or again."""
        cells: dict[str, list[int]] = {}
        for number in sorted(numbers):
            cells.setdefault(self.tests[number].cell, []).append(number)
        for together in cells.values():
            timed = any(self.tests[number].timed for number in together)
            unit = Unit((timed, -self.cost(together), together[0]), together)
            insort(self._waiting.setdefault(self.tests[together[0]].model, []), unit)

    def cost(self, numbers: Iterable[int]) -> float:
        """Seconds that these tests take, by what they cost before."""
        return sum(self.tests[number].cost for number in numbers)

    def take(self, worker: Hashable, busy: Mapping[Hashable, float]) -> list[int]:
        """The tests of the next cell for `worker`; none if it has done its part.

        `busy` says how many seconds of work each worker still has. A worker has to be told what
        comes next while its last test is still to run, so what is left at the end goes to those who
        will be free before it.
        """
        sooner = sum(seconds < busy[worker] for seconds in busy.values())
        if len(self) <= sooner:
            return []
        model = self._model_for(worker)
        self._loaded[worker] = model
        units = self._waiting[model]
        tests = units.pop(0).tests
        if not units:
            del self._waiting[model]
        return tests

    def forget(self, worker: Hashable) -> None:
        """This worker is gone, with all it had loaded."""
        self._loaded.pop(worker, None)

    def _model_for(self, worker: Hashable) -> str:
        own = self._loaded.get(worker)
        if own in self._waiting:
            return own
        others = set(self._loaded.values())

        def rank(model: str) -> tuple[bool, bool, float]:
            units = self._waiting[model]
            only_timed = all(self.tests[number].timed for unit in units for number in unit.tests)
            return only_timed, model in others, sum(unit.order[1] for unit in units)

        return min(self._waiting, key=rank)
