"""How much of the error a look at the intervals may spend, and at which level that leaves it.

Who looks more than once at data that keep coming has more than one chance to be wrong. Alpha
spending (Lan and DeMets, Biometrika 70, 1983, 659-663) gives each look a part of the error that
depends only on how far the data have come, so neither the number of looks nor their times need be
known beforehand. docs/verdicts.md has the choice, beside others.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: by a fraction t of all observations, t**POWER of the error is spent (Kim and DeMets, Biometrika
#: 74, 1987, 149-154): a clear case is decided early, and most is left for close ones
POWER = 2

#: error on a side that costs nothing, so that no level is rounded to 1, whose intervals are endless
_LEAST = 1e-12
_REACH = 8.0  #: standard deviations that a density is followed to
_FEWEST, _MOST = 201, 3001  #: points of its grid


def look_level(counts: tuple[int, ...], alpha: float, *, most: int | None, last: bool) -> float:
    """The two-sided level of the intervals at the latest of several looks.

    `counts` are the observations seen at each look, in order; `most` is how many there can be, if
    that is known. Up to look k a share (count / most)**POWER of `alpha` is spent, or 1 - 2**-k
    where `most` is unknown, and all of it by the `last` look. Over all looks together the
    intervals then miss a value with `alpha` at most, half of it on each side, if estimates are
    asymptotically normal with independent increments, as means and what is made of them are. Are
    they correlated more closely (a part of the noise that all looks share), they miss less.

    What makes a look the last must be the end of the data or of the time, never the values seen;
    to stop because all is decided is no such end.

    Raises:
        ValueError: if there are more observations than `most`, or counts do not grow.
    """
    if list(counts) != sorted(set(counts)) or not counts:
        raise ValueError(f"looks need growing counts, got {counts}")
    if most is not None and counts[-1] > most:
        raise ValueError(f"{counts[-1]} observations, where at most {most} were announced")
    # a look without observations has no interval, and nothing to be wrong about
    seen = [count for count in counts if count]
    if not seen:
        return 1 - alpha
    if most is None:
        shares = [1 - 2.0 ** -(k + 1) for k in range(len(seen))]
    else:
        shares = [(count / most) ** POWER for count in seen]
    if last:
        shares[-1] = 1.0
    times = tuple(count / seen[-1] for count in seen)
    spent = tuple(share * alpha / 2 for share in shares)
    return 1 - 2 * max(_tail(boundaries(times, spent)[-1]), _LEAST)


@cache
def boundaries(times: tuple[float, ...], spent: tuple[float, ...]) -> tuple[float, ...]:
    """One-sided boundaries z of the standardized estimate at growing information `times`.

    They are such that an estimate of a value that lies on the bound has crossed one of the first
    k with probability `spent[k]`. Estimates at different times are correlated, by the root of the
    ratio of these; their joint distribution is followed from look to look by numerical
    integration (Armitage, McPherson and Rowe, JRSS A 132, 1969, 235-244).
    """
    import numpy as np

    found: list[float] = []
    points = mass = np.zeros(0)  # of the estimates that have not crossed yet
    for k, (time, cumulated) in enumerate(zip(times, spent, strict=True)):
        error = cumulated - (spent[k - 1] if k else 0.0)
        step = math.sqrt(time - (times[k - 1] if k else 0.0))
        bound = _bound(points, mass, step, error) if k else step * _quantile(error)
        found.append(bound / math.sqrt(time))
        if k + 1 < len(times):
            after = math.sqrt(times[k + 1] - time)
            grid, weights = _grid(-_REACH * math.sqrt(time), bound, after)
            if k:
                density = _normal((grid[:, None] - points) / step) @ mass / step
            else:
                density = _normal(grid / step) / step
            points, mass = grid, density * weights
    return tuple(found)


def _bound(
    points: NDArray[np.float64], mass: NDArray[np.float64], step: float, error: float
) -> float:
    """What a sum that is spread over `points` crosses with probability `error` in one step."""
    from scipy import optimize, special

    def excess(bound: float) -> float:
        return float(mass @ special.ndtr((points - bound) / step)) - error

    # all mass lies below the last point, and few steps are longer than their own quantile
    return float(
        optimize.brentq(excess, points[0], points[-1] + step * _quantile(error), xtol=1e-9)
    )


def _grid(low: float, high: float, scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of Simpson's rule, fine enough for what varies over `scale`."""
    import numpy as np

    count = min(max(math.ceil(3 * (high - low) / scale), _FEWEST), _MOST) | 1
    points = np.linspace(low, high, count)
    weights = np.full(count, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return points, weights * (points[1] - points[0]) / 3


def _normal(z: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _quantile(error: float) -> float:
    from scipy import special

    return -float(special.ndtri(error))


def _tail(z: float) -> float:
    from scipy import special

    return float(special.ndtr(-z))
