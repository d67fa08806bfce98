"""What two runs have both measured, observation by observation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from bitgate.history.evidence import Evidence
from bitgate.history.saved import Items, Side

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Shared:
    """The observations that both sides have; subclasses say which those are, and what a change of
    their mean is."""

    #: metrics that are sums over observations: the columns that make them up, and the sign of each
    paired: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    #: what an observation is
    observed: ClassVar[str] = ""

    def __init__(self, then: Side, now: Side) -> None:
        self.then = then
        self.now = now
        self._shared: tuple[Items, Items] | str | None = None
        self._another: str | None = None

    @property
    def another(self) -> str | None:
        """How the observations or the base are others than then, although they are still called
        so."""
        if self._shared is None:
            self._shared = self._pair()
        return self._another

    def evidence(self, metric: str) -> Evidence | str:
        """The mean change, or why there is none."""
        import numpy as np

        if self._shared is None:
            self._shared = self._pair()
        if isinstance(self._shared, str):
            return self._shared
        then, now = self._shared
        total = np.zeros(len(next(iter(now.values()))))
        for column, sign in self.paired[metric].items():
            if column not in then or column not in now:
                return f"the scores have no column {column}"
            total += sign * (np.asarray(now[column], float) - np.asarray(then[column], float))
        if not np.isfinite(total).all():
            return f"{self.observed}'s score is not a finite number"
        return self._evidence(total, now)

    def _pair(self) -> tuple[Items, Items] | str:
        """The same observations of both sides, in the same order, or why there are none."""
        raise NotImplementedError

    def _evidence(self, changes: NDArray[np.float64], now: Items) -> Evidence:
        """Of the change of each observation, of shape (n,)."""
        raise NotImplementedError

    def _lacking(self, *columns: str) -> str | None:
        """Which side has not the columns without which nothing can be paired."""
        for side in (self.then, self.now):
            if any(name not in side.items for name in columns):
                which = side.run or "this run"
                return f"the per-item scores of {which} are missing (its .parquet file)"
        return None


def taken(items: Items, at: NDArray[np.intp]) -> Items:
    """Some of the observations."""
    import numpy as np

    return {name: np.asarray(values)[at] for name, values in items.items()}
