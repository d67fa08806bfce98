"""A metric: one named quantity with its unit, its better direction, and how sure we are of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Spec:
    """What is known of a metric before it is measured."""

    name: str
    unit: str
    better: Better
    kinds: tuple[str, ...]
    meaning: str
    predicted: bool = False  #: whether it comes with an expected value, which `within` needs


#: Every metric there is. A gate on a name that is not here is an error, so a typo is seen.
SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("perplexity", "1", "lower", ("perplexity",), "exp of the mean negative log-likelihood per token"),
        Spec("base_perplexity", "1", "neither", ("perplexity",), "the same of the unquantized model"),
        Spec("perplexity_ratio", "1", "lower", ("perplexity",), "perplexity over the base's, paired by window"),
        Spec("kl_divergence", "nat/token", "lower", ("perplexity",), "KL(base || quantized) over the full vocabulary"),
        Spec("top1_agreement", "1", "higher", ("perplexity",), "share of positions where both prefer the same token"),
        Spec("quantize_seconds", "s", "lower", ("quantize",), "time to quantize the model"),
        Spec("size_mib", "MiB", "lower", ("quantize",), "the saved file; expected: predicted from shapes", True),
        Spec("memory_mib", "MiB", "lower", ("quantize",), "all tensors of the served model; expected: predicted from shapes", True),
        Spec("base_size_mib", "MiB", "neither", ("quantize",), "all tensors of the base, tied weights once"),
        Spec("reload_difference", "1", "lower", ("quantize",), "largest logit difference after save and load"),
        Spec("packed_layers", "layers", "higher", ("quantize", "perplexity", "decode", "prefill"), "layers served by the chosen kernel; expected: all that the recipe quantizes", True),
        Spec("speedup", "1", "higher", ("decode", "prefill"), "base's time over quantized time, interleaved"),
        Spec("tokens_per_second", "token/s", "higher", ("decode", "prefill"), "quantized, all sequences together"),
        Spec("base_tokens_per_second", "token/s", "neither", ("decode", "prefill"), "base, all sequences together"),
        Spec("latency_ms", "ms", "lower", ("decode", "prefill"), "quantized: median time of a decode step, or of the prompt"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval and where it comes from.

    `level` is its coverage over all looks together; `n` counts the independent units that were
    resampled, of the kind named by `unit` ("window", "process", ...).
    """

    low: float
    high: float
    level: float
    method: str
    unit: str
    n: int


@dataclass(frozen=True)
class Metric:
    """A measured value: with an interval, or exact (`interval` is None).

    `expected` is what theory predicts (a size from shapes, a count of layers); a gate's
    `within` bound is relative to it.
    """

    name: str
    value: float
    interval: Interval | None = None
    expected: float | None = None

    @property
    def spec(self) -> Spec:
        return SPECS[self.name]

    @property
    def low(self) -> float:
        return self.value if self.interval is None else self.interval.low

    @property
    def high(self) -> float:
        return self.value if self.interval is None else self.interval.high

    @property
    def finite(self) -> bool:
        return all(math.isfinite(x) for x in (self.value, self.low, self.high))

    def record(self) -> dict[str, Any]:
        """JSON for a run: docs/schema.md describes it."""
        out: dict[str, Any] = {
            "value": self.value,
            "unit": self.spec.unit,
            "better": self.spec.better,
            "interval": "exact" if self.interval is None else asdict(self.interval),
        }
        if self.expected is not None:
            out["expected"] = self.expected
        return out

    def text(self, digits: int = 4) -> str:
        """`perplexity_ratio 1.338 (98 % interval 1.329 to 1.347, Student t over 32 windows)`."""
        text = f"{self.name} {number(self.value, digits)}"
        if (i := self.interval) is not None:
            return (
                f"{text} ({100 * i.level:g} % interval {number(i.low, digits)} to "
                f"{number(i.high, digits)}, {i.method} over {i.n} {plural(i.unit, i.n)})"
            )
        if self.expected is not None:
            return f"{text} (exact, expected {number(self.expected, digits)})"
        return f"{text} (exact)"

    @classmethod
    def of_record(cls, name: str, record: Mapping[str, Any]) -> Metric:
        """The metric that `record` was made of."""
        interval = record["interval"]
        return cls(
            name,
            record["value"],
            None if interval == "exact" else Interval(**interval),
            record.get("expected"),
        )

    def __str__(self) -> str:
        return self.text()


def number(x: float, digits: int = 4) -> str:
    """`digits` significant digits, for reading only: what is judged is never rounded."""
    if not math.isfinite(x):
        return str(x)
    if x == int(x) and abs(x) < 1e6:
        return str(int(x))
    return f"{x:.{digits}g}" if abs(x) < 1e4 else f"{x:.{digits - 1}e}"


def plural(unit: str, n: int) -> str:
    if n == 1:
        return unit
    return unit + ("es" if unit.endswith("s") else "s")
