"""The same layers, quantized then and now: what a mean over all of them would hide shows in one."""

from __future__ import annotations

import math

from bitgate.history.evidence import Evidence
from bitgate.history.saved import Side
from bitgate.metric import number

METRIC = "weight_error"


def evidence(then: Side, now: Side) -> Evidence | str:
    """The change, as a logarithm, of the layer that changed most for the worse, or why none can be
    named. It is computed from the weights themselves, so it is certain."""
    sides = []
    for side in (then, now):
        if "layer" not in side.items or METRIC not in side.items:
            return f"the layers of {side.run or 'this run'} are missing (its .parquet file)"
        sides.append(dict(zip(map(str, side.items["layer"]), side.items[METRIC], strict=True)))
    was, is_ = sides
    if other := sorted(was.keys() ^ is_.keys()):
        return (
            f"other layers: {len(other)} are quantized in only one of the two, such as {other[0]}"
        )
    changes = {name: _logarithm(float(was[name]), float(error)) for name, error in is_.items()}
    worst = max(changes, key=lambda name: changes[name])
    told = f"{worst} {number(float(was[worst]))}, now {number(float(is_[worst]))}"
    return Evidence(changes[worst], 0, math.inf, f"exact, layer by layer: {told}")


def _logarithm(was: float, is_: float) -> float:
    if is_ == was:
        return 0.0
    if was > 0 and is_ > 0:
        return math.log(is_ / was)
    return math.copysign(math.inf, is_ - was)
