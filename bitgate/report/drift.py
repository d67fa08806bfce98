"""Changes over the runs: for a terminal, for a pull request, for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bitgate.history.changepoint import LEAST
from bitgate.history.drift import Change, Drift
from bitgate.history.points import History, Point
from bitgate.metric import number, plural

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

MARKS = {"worse": ("✗", "red"), "better": ("✓", "green"), "neither": ("·", "dim")}
BARS = "▁▂▃▄▅▆▇█"
POINTS = 30  #: of a trend; more runs than that share them
SHOWN = 5  #: files left out, by name

HEADS = ("case", "metric", "until", "before", "after", "change", "sure", "trend")


def render(found: Drift, history: History, *, width: int, colour: bool) -> str:
    """One table per run with which something changed, the newest last, then what was not judged."""
    from rich.console import Console

    console = Console(
        width=width,
        force_terminal=colour,
        no_color=not colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    with console.capture() as capture:
        for changes in _by_run(found.changes):
            console.print(_table(changes))
            console.print()
        for line in _footer(found, history):
            console.print(line, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def markdown(found: Drift, history: History) -> str:
    """The same for a pull request."""
    lines = []
    for changes in _by_run(found.changes):
        lines += [f"**{_title(changes)}**", ""]
        lines += [f"| | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
        for change in changes:
            cells = [MARKS[change.direction][0], *(text.plain for text in _cells(change))]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"{line}  " for line in _footer(found, history))]) + "\n"


def as_json(found: Drift, history: History) -> str:
    """The same for programs, all digits kept; NaN and infinity are null."""
    return json.dumps(
        {
            "runs": len(history.runs),
            "judged": found.judged,
            "short": len(found.short),
            "not_finite": found.not_finite,
            "skipped": [{"file": str(one.path), "reason": one.reason} for one in history.skipped],
            "changes": [_plain(change) for change in found.changes],
        },
        indent=2,
        allow_nan=False,
    )


def _plain(change: Change) -> dict[str, Any]:
    first, last, how = change.first.of, change.last.of, change.first.of.execution
    return {
        "case": first.case,
        "metric": change.first.metric.name,
        "unit": change.first.unit,
        "direction": change.direction,
        "before": _finite(change.before),
        "after": _finite(change.after),
        "relative": _finite(change.relative),
        "p": change.p,
        "way": change.way,
        "absolute_time": change.series.absolute,
        "since": {
            "run": first.run.name,
            "time": first.run.time.isoformat(),
            "commit": first.commit,
        },
        "until": {"run": last.run.name, "time": last.run.time.isoformat(), "commit": last.commit},
        "runs_before": change.at - change.start,
        "runs_after": change.end - change.at,
        "runs_ago": change.ago,
        "beside": change.beside,
        "device": first.device,
        "kernel": how.kernel,
        "dtype": how.dtype,
        "threads": how.threads,
        "compiled": how.compiled,
        "host": first.host,
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


# --- tables --------------------------------------------------------------------------------


def _by_run(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """What began with the same run is likely to have one cause."""
    for _, group in groupby(changes, key=lambda change: change.first.of.run):
        yield sorted(group, key=lambda change: list(MARKS).index(change.direction))


def _title(changes: Sequence[Change]) -> str:
    first = changes[0].first.of
    beside = dict.fromkeys(text for change in changes for text in change.beside)
    name = first.run.name if first.run.number is None else f"run {first.run.number:04d}"
    title = f"since {name}, {first.run.time:%Y-%m-%d %H:%M} UTC, {_short(first.commit)}"
    return f"{title}; with it came {', '.join(beside)}" if beside else title


def _table(changes: Sequence[Change]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(_title(changes)),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for head in HEADS:
        right = head in ("before", "after", "change")
        table.add_column(
            head,
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=head not in ("case", "metric"),
        )
    for change in changes:
        mark, style = MARKS[change.direction]
        table.add_row(f"[{style}]{mark}[/]", *_cells(change))
    return table


def _cells(change: Change) -> list[Text]:
    from rich.text import Text

    _, style = MARKS[change.direction]
    relative = f"{change.relative:+.1%}" if math.isfinite(change.relative) else "new"
    if abs(change.relative) < 0.001:
        relative = f"{change.relative:+.1g}"
    digits = 4
    while digits < 17 and number(change.before, digits) == number(change.after, digits):
        digits += 1
    return [
        Text(change.first.of.case),
        Text(change.first.metric.name),
        Text(_short(change.last.of.commit)),
        Text(number(change.before, digits)),
        Text(number(change.after, digits), style),
        Text(relative, style),
        Text(_sure(change)),
        _trend(change, style),
    ]


def _sure(change: Change) -> str:
    if change.way == "exact":
        return "exact"
    if change.way == "repeating":
        return "repeats"
    return "p < 1e-6" if change.p < 1e-6 else f"p = {change.p:.1g}"


def _short(commit: str | None) -> str:
    """Eight digits, and the mark for changes."""
    if not commit:
        return "no commit"
    return commit.removesuffix("+")[:8] + commit[len(commit.removesuffix("+")) :]


def _trend(change: Change, style: str) -> Text:
    """The whole series in at most `POINTS` bars, a line where the change is."""
    from rich.text import Text

    values = change.series.values
    size = math.ceil(len(values) / POINTS)
    low, high = min(values), max(values)

    def bars(part: Sequence[float]) -> str:
        means = [
            sum(part[i : i + size]) / len(part[i : i + size]) for i in range(0, len(part), size)
        ]
        scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(BARS[min(round((mean - low) * scale), len(BARS) - 1)] for mean in means)

    return Text.assemble(bars(values[: change.at]), "│", (bars(values[change.at :]), style))


# --- below them ----------------------------------------------------------------------------


def _footer(found: Drift, history: History) -> Iterator[str]:
    runs = len(history.runs)
    worse = sum(change.direction == "worse" for change in found.changes)
    yield (
        f"{len(found.changes)} {plural('change', len(found.changes))}, {worse} for the worse, in "
        f"{found.judged} series of {runs} {plural('run', runs)}"
    )
    if found.short:
        yield (
            f"{len(found.short)} series are too short to tell: what varies needs {2 * LEAST} runs, "
            "what is exact 2"
        )
    if found.not_finite:
        yield f"{found.not_finite} values were left out: they are no finite numbers"
    absolute = sum(change.series.absolute for change in found.changes)
    if absolute:
        yield (
            f"{absolute} of the changes {'is' if absolute == 1 else 'are'} of an absolute time, "
            "which follows the load of its machine"
        )
    yield from _machines(history.points)
    for skipped in history.skipped[:SHOWN]:
        yield f"left out: {skipped}"
    if history.skipped[SHOWN:]:
        yield f"left out: {len(history.skipped) - SHOWN} more files"


def _machines(points: Sequence[Point]) -> Iterator[str]:
    machines = dict.fromkeys(point.of.machine for point in points)
    if len(machines) > 1:
        names = ", ".join(f"{host} ({cpu})" if cpu else host for host, cpu in machines)
        yield f"{len(machines)} machines, whose absolute times are not compared: {names}"
