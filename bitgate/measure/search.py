"""Finding a plan for a budget: the front of plans by measured sensitivity, and points of it
measured as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bitgate.catalog import Plan, Rule
from bitgate.measure.front import Option, front
from bitgate.measure.layer_times import Shape
from bitgate.measure.measurement import MeasureError
from bitgate.metric import Metric, number
from bitgate.quantize import ModelShapes, Size
from bitgate.quantize.plans import HEAD, matches, plan_of, widths

Axis = Literal["size", "speed"]

#: log perplexity ratio for each nat of summed sensitivity, until a plan has been measured
FIRST_GUESS = 1.0


@dataclass
class Candidate:
    """A point of the front."""

    plan: Plan
    harm: float  #: summed sensitivity, nats per token
    size_bytes: int  #: of the tensors in the saved file, exact
    bits_per_weight: float  #: of the layers that are quantized, scales left out
    speedup: float | None = None  #: predicted: of the linear layers alone, for one row
    measured: Mapping[str, Metric] = field(default_factory=dict)

    @property
    def ratio(self) -> Metric | None:
        return self.measured.get("perplexity_ratio")


@dataclass(frozen=True)
class Budget:
    """What a plan must keep within; None for no matter what."""

    size_bytes: float | None = None
    speedup: float | None = None
    ratio: float | None = None

    def admits(self, candidate: Candidate) -> bool:
        """Whether size and predicted speed are within it."""
        small = self.size_bytes is None or candidate.size_bytes <= self.size_bytes
        fast = self.speedup is None or (candidate.speedup or 0) >= self.speedup
        return small and fast


class Costs:
    """Of units and plans: bytes from shapes alone, seconds from layers timed one by one."""

    def __init__(
        self,
        shapes: ModelShapes,
        group_size: int,
        size: Callable[[Plan], Size],
        seconds: Mapping[Shape, float] | None,
    ) -> None:
        self.shapes = shapes
        self.group_size = group_size
        self.size = size
        self.seconds = seconds
        self.linears = {linear.name: linear for linear in shapes.linears}

    def of_unit(self, axis: Axis, plan: Plan | None, layers: Sequence[str]) -> float:
        """What a unit alone costs under a plan for it; None leaves it as it is. Bytes are beside
        those of a model whose layers take none."""
        if axis == "speed":
            given = widths(plan, self.shapes) if plan else {}
            return sum(
                self._seconds_of(name, given[name].bits if name in given else None)
                for name in layers
            )
        return float(self.size(plan).tensors) if plan else 0.0

    def speedup(self, plan: Plan) -> float | None:
        """Of all linear layers, the head among them."""
        if self.seconds is None:
            return None
        given = widths(plan, self.shapes)
        before = sum(self._seconds_of(name, None) for name in self.linears)
        after = sum(
            self._seconds_of(name, given[name].bits if name in given else None)
            for name in self.linears
        )
        return before / after

    def _seconds_of(self, name: str, bits: int | None) -> float:
        assert self.seconds is not None
        linear = self.linears[name]
        return self.seconds[linear.out_features, linear.in_features, bits]

    def candidate(self, plan: Plan, harm: float) -> Candidate:
        given = widths(plan, self.shapes)
        weights = {n: s.out_features * s.in_features for n, s in self.linears.items() if n in given}
        bits = sum(given[name].bits * count for name, count in weights.items())
        return Candidate(
            plan,
            harm,
            self.size(plan).tensors,
            bits / sum(weights.values()),
            self.speedup(plan),
        )


def candidates(
    name: str,
    axis: Axis,
    rules: Mapping[str, Rule | None],
    harms: Mapping[str, Mapping[int, float]],
    plan_for: Callable[[str, Rule | None, int], Plan],
    costs: Costs,
    base_bytes: float,
) -> list[Candidate]:
    """The front, from the least harm to the least cost; `rules` by unit, of the head None."""
    options: dict[str, list[Option]] = {}
    for unit, rule in rules.items():
        layers = [costs.shapes.head or ""] if rule is None else matches(rule, costs.shapes, name)
        options[unit] = [
            Option(bits, costs.of_unit(axis, plan_for(unit, rule, bits), layers), harm)
            for bits, harm in harms[unit].items()
        ]
        if rule is None:  # the head may stay as it is
            kept = base_bytes if axis == "size" else costs.of_unit(axis, None, layers)
            options[unit].append(Option(None, kept, 0.0))
    found = []
    of_body = {unit: rule for unit, rule in rules.items() if rule is not None}
    for point in front(options):
        chosen = {unit: bits for unit, bits in point.bits.items() if bits is not None}
        plan = plan_of(name, chosen, of_body, costs.group_size)
        found.append(costs.candidate(plan, point.harm))
    return found


def best_within(found: Sequence[Candidate], budget: Budget) -> int:
    """The number of the point with the least harm that size and speed admit.

    Raises:
        MeasureError: if none is within the budget.
    """
    for number_, candidate in enumerate(found):
        if budget.admits(candidate):
            return number_
    smallest = min(candidate.size_bytes for candidate in found) / 2**20
    fastest = max((candidate.speedup or 0) for candidate in found)
    raise MeasureError(
        f"no plan is within the budget: the smallest has {smallest:.1f} MiB"
        + (f", the fastest is predicted {fastest:.2f} times as fast" if fastest else "")
        + "; allow fewer bits with --bits, or ask for less"
    )


def cheapest_within(
    found: Sequence[Candidate],
    budget: Budget,
    verify: Callable[[Plan], Mapping[str, Metric]],
    most: int,
) -> int:
    """The number of the last point whose measured perplexity ratio, to the end of its interval, is
    within the budget; at most so many points are measured.

    The next one to measure is where the last one's ratio for its harm puts the bound (regula
    falsi), so that a few are enough.

    Raises:
        MeasureError: if not even the first point that size and speed admit is.
    """
    assert budget.ratio is not None
    low, high = best_within(found, budget), len(found) - 1
    while not budget.admits(found[high]):
        high -= 1
    bound, scale, good = math.log(budget.ratio), FIRST_GUESS, None
    for left in range(most, 0, -1):
        if good == high:
            break
        lowest = low if good is None else good + 1
        target = bound / scale
        at = max((i for i in range(lowest, high + 1) if found[i].harm <= target), default=lowest)
        if left == 1 and good is None:  # the last chance to have anything
            at = low
        candidate = found[at]
        candidate.measured = verify(candidate.plan)
        ratio = candidate.ratio
        assert ratio is not None
        if ratio.finite and candidate.harm > 0:
            scale = max(math.log(max(ratio.high, 1 + 1e-9)) / candidate.harm, 1e-9)
        if ratio.finite and ratio.high <= budget.ratio:
            good = at
        elif at == low:
            raise MeasureError(
                f"not even the finest plan within the budget is as good: {ratio.text()}"
            )
        else:
            high = at - 1
            if good is None and high < low:
                break
    if good is None:
        raise MeasureError(
            f"no plan with a perplexity ratio of at most {number(budget.ratio)} was found by "
            f"measuring {most}; raise --verify"
        )
    return good


def spread(found: Sequence[Candidate], count: int) -> list[int]:
    """Numbers of so many points, evenly over the front, its ends among them."""
    if count >= len(found):
        return list(range(len(found)))
    if count < 2:
        return [0][:count]
    return sorted({round(i * (len(found) - 1) / (count - 1)) for i in range(count)})


def units_with_head(rules: Mapping[str, Rule], shapes: ModelShapes) -> dict[str, Rule | None]:
    """The head as a unit of its own beside those of the blocks, if there is one."""
    return {**rules, **({HEAD: None} if shapes.head is not None else {})}
