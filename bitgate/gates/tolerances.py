"""How much worse than before is still the same: `[against]` of `thresholds.toml`.

[against]
perplexity = 0.002     # 0.2 %
top1_agreement = 0.01  # a hundredth of all tokens

A change counts only where it is worse by more than this, and surely so. Without it scores without
any noise, as text on one machine gives them, would make the smallest change of a sum's order red.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitgate.catalog import CatalogError, nearest

#: how a change is measured: `ratio` of now and then, minus 1, or `difference`, in the metric's unit
Scale = Literal["ratio", "difference"]


@dataclass(frozen=True)
class Tolerance:
    """The largest change for the worse of one metric that is no change."""

    scale: Scale
    worse: float


#: every metric that is compared with earlier runs, with what holds unless the file says otherwise;
#: docs/decisions/0008-across-runs.md has the reasons
DEFAULTS: dict[str, Tolerance] = {
    "perplexity": Tolerance("ratio", 0.001),
    "perplexity_ratio": Tolerance("ratio", 0.001),
    "kl_divergence": Tolerance("difference", 0.0005),
    "top1_agreement": Tolerance("difference", 0.005),
    "accuracy": Tolerance("difference", 0.01),
    "accuracy_difference": Tolerance("difference", 0.01),
    "speedup": Tolerance("ratio", 0.02),
    "cpu_speedup": Tolerance("ratio", 0.02),
    "weight_error": Tolerance("ratio", 0.01),
    "size_mib": Tolerance("ratio", 0.001),
    "memory_mib": Tolerance("ratio", 0),
    "packed_layers": Tolerance("ratio", 0),
    "reload_difference": Tolerance("difference", 0),
}


def tolerances(table: Any, where: str) -> Mapping[str, Tolerance]:
    """`DEFAULTS`, with what an `[against]` table says instead.

    Raises:
        CatalogError: for a metric that is not compared, or no number of 0 or more.
    """
    if not isinstance(table, dict):
        raise CatalogError(f"{where}: expected a table of metrics and numbers")
    read = dict(DEFAULTS)
    for name, worse in table.items():
        if name not in DEFAULTS:
            raise CatalogError(
                f"{where}: {name}: nothing is compared that is called so; {nearest(name, DEFAULTS)}"
            )
        if isinstance(worse, bool) or not isinstance(worse, (int, float)) or not 0 <= worse < 1e9:
            raise CatalogError(f"{where}: {name}: expected a number, 0 or more, got {worse!r}")
        read[name] = Tolerance(DEFAULTS[name].scale, float(worse))
    return read
