"""The front of plans that a search has walked, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from bitgate.measure.search import Candidate

MIB = 2**20


def front_table(found: Sequence[Candidate], shown: Collection[int], chosen: int | None) -> Table:
    """Those points that are `shown`, by number; the chosen one is marked."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("bits", "head", "MiB", "speed-up*", "harm", "perplexity ratio", "98 % interval"):
        table.add_column(column, justify="right")
    for number in sorted(shown):
        one = found[number]
        ratio = one.ratio
        table.add_row(
            "→" if number == chosen else "",
            f"{one.bits_per_weight:.2f}",
            str(one.plan.head or "-"),
            f"{one.size_bytes / MIB:.1f}",
            "-" if one.speedup is None else f"{one.speedup:.2f}",
            f"{one.harm:.4f}",
            "" if ratio is None else f"{ratio.value:.4f}",
            "" if ratio is None else f"{ratio.low:.4f} to {ratio.high:.4f}",
            style="bold" if number == chosen else None,
        )
    return table


LEGEND = (
    "bits: per quantized weight, scales left out; MiB: the saved file; speed-up*: predicted for "
    "one row from the times of single linear layers; harm: the sum of their KL divergences, each "
    "quantized alone, in nats per token; perplexity ratio: measured, all quantized"
)


def front_json(found: Sequence[Candidate], chosen: int | None) -> list[dict[str, Any]]:
    """Every point, as JSON holds it."""
    return [
        {
            "chosen": number == chosen,
            "bits_per_weight": one.bits_per_weight,
            "size_bytes": one.size_bytes,
            "predicted_speedup": one.speedup,
            "harm": one.harm,
            "measured": {name: metric.record() for name, metric in one.measured.items()},
            "plan": one.plan.model_dump(mode="json", exclude_defaults=True),
        }
        for number, one in enumerate(found)
    ]
