"""Two runs side by side: on the terminal, as Markdown, as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitgate.history.change import ALPHA, VERDICTS, Change, Verdict, signed
from bitgate.history.saved import SavedRun
from bitgate.history.schema import Value
from bitgate.history.store import Reference
from bitgate.metric import number, plural

MARKS: dict[Verdict, tuple[str, str]] = {
    "regression": ("✗", "bold red"),
    "missing": ("?", "yellow"),
    "not comparable": ("?", "yellow"),
    "no history yet": ("?", "yellow"),
    "inconclusive": ("?", "yellow"),
    "better": ("✓", "green"),
    "unchanged": ("✓", "green"),
    "recorded": ("·", "dim"),
}
#: what a metric is about, by its unit; what is not here is about quality
ASPECTS = {
    **dict.fromkeys(("s", "ms", "token/s", "item/s"), "speed"),
    **dict.fromkeys(("MiB", "GiB", "B", "layers"), "size"),
    **dict.fromkeys(("kWh", "J/token", "J/item", "kg CO2eq"), "energy"),
}
ORDER = ("quality", "size", "memory", "speed", "energy")


@dataclass(frozen=True)
class SideBySide:
    """Two references and every change between them, judged."""

    a: Reference
    b: Reference
    changes: Sequence[Change]

    @property
    def sections(self) -> Iterator[tuple[str, list[Change]]]:
        """Changes by aspect; first the cases that are in only one of the two."""
        found: dict[str, list[Change]] = {"": [], **{aspect: [] for aspect in ORDER}}
        for change in self.changes:
            found[aspect(change)].append(change)
        return ((name, changes) for name, changes in found.items() if changes)


def aspect(change: Change) -> str:
    """`quality`, `size`, `memory`, `speed` or `energy`; nothing of a whole case."""
    value = change.now or change.then
    if not change.metric or value is None:
        return ""
    if change.timed:
        return "speed"
    if "energy" in change.metric:
        return "energy"
    if "memory" in change.metric or "peak" in change.metric:
        return "memory"
    return ASPECTS.get(value.unit, "quality")


def counts(changes: Sequence[Change]) -> str:
    """`1 regression, 60 unchanged; Holm's correction over 12 comparisons, 2 %`."""
    found = Counter(change.verdict for change in changes)
    parts = [
        f"{found[v]} {plural(v, found[v]) if v == 'regression' else v}"
        for v in VERDICTS
        if found[v]
    ]
    noisy = sum(change.p is not None for change in changes)
    holm = f" (Holm's correction over the {noisy} with any noise, {100 * ALPHA:g} %)"
    return f"{', '.join(parts) or 'nothing to compare'}{holm if noisy else ''}"


def cells(change: Change) -> tuple[str, str, str, str, str]:
    """Metric, then, now, change and verdict, as a table has them."""
    difference, interval = change.change, change.interval
    if difference is None or not math.isfinite(difference):
        how = ""
    elif difference == 0:
        how = "="
    else:
        how = signed(difference, change.scale)
        if interval is not None:
            low, high = (signed(x, change.scale) for x in interval)
            how += f" ({low} to {high})"
    return change.metric, value(change.then), value(change.now), how, change.verdict


def value(measured: Value | None) -> str:
    """`1.227 (1.185 to 1.271)`; a dash for what was not measured."""
    if measured is None:
        return "–"
    bounds = measured.bounds
    if bounds is None or not measured.finite:
        return number(measured.value)
    return f"{number(measured.value)} ({number(bounds.low)} to {number(bounds.high)})"


# --- terminal ------------------------------------------------------------------------------


def terminal(found: SideBySide) -> Iterator[Any]:
    """Tables and lines for rich, the regressions last."""
    from rich.table import Table
    from rich.text import Text

    for name, reference in (("A", found.a), ("B", found.b)):
        yield Text(f"{name}  {headline(reference)}", no_wrap=True)
    for title, changes in found.sections:
        if not title:
            for change in changes:
                mark, style = MARKS[change.verdict]
                yield Text.assemble((f"{mark} {change.case}: {change.text}", style))
            continue
        table = Table(title=title, title_justify="left", title_style="bold", box=None)
        table.add_column("case", overflow="fold")
        for column in ("metric", "A", "B", "change"):
            table.add_column(column, overflow="fold", justify="left")
        table.add_column("verdict", no_wrap=True)
        last = ""
        for change in changes:
            mark, style = MARKS[change.verdict]
            *numbers, verdict = cells(change)
            shown = "" if change.case == last else change.case
            # as texts: names have brackets, which rich would read as its own
            table.add_row(*map(Text, (shown, *numbers)), Text(f"{mark} {verdict}", style))
            last = change.case
        yield table
    yield from (Text(line) for line in _sentences(found))
    yield Text(counts(found.changes), style="bold")


def headline(reference: Reference) -> str:
    """Which runs, when, of how many cases, and what is wrong with them."""
    run: SavedRun = reference.runs[0]
    parts = [reference.title, run.when[:19].replace("T", " "), f"{len(reference.cases)} cases"]
    if trouble := [r for r in reference.runs if not r.passed]:
        parts.append(f"not passed: {trouble[0].trouble}")
    return ", ".join(part for part in parts if part)


#: said in full, each once for all metrics of a case that it is true of
SAID: tuple[Verdict, ...] = ("inconclusive", "no history yet", "not comparable", "regression")


def _sentences(found: SideBySide) -> Iterator[str]:
    for verdict in SAID:
        said: dict[tuple[str, str], list[Change]] = {}
        for change in found.changes:
            if change.verdict == verdict and change.metric:
                why = change.why if change.evidence is None else change.text
                said.setdefault((change.case, why), []).append(change)
        for (case, _), same in said.items():
            metrics = ", ".join(change.metric for change in same)
            text = same[0].text if len(same) == 1 else f"{metrics} {verdict}: {same[0].why}"
            yield f"{MARKS[verdict][0]} {case}: {text}"


# --- Markdown ------------------------------------------------------------------------------


def markdown(found: SideBySide) -> str:
    """For a pull request: the verdict first, then tables."""
    lines = [f"**{counts(found.changes)}**", ""]
    for name, reference in (("A", found.a), ("B", found.b)):
        lines.append(f"- {name}: {headline(reference)}")
    lines += ["", *(f"- {escaped(line)}" for line in _sentences(found)), ""]
    for title, changes in found.sections:
        if not title:
            lines += [f"- {_mark(c.verdict)} `{c.case}`: {escaped(c.text)}" for c in changes]
            lines.append("")
            continue
        lines += [
            f"### {title}",
            "",
            "| case | metric | A | B | change | verdict |",
            "|---|---|---|---|---|---|",
        ]
        for change in changes:
            metric, then, now, how, verdict = cells(change)
            row = (f"`{change.case}`", metric, then, now, how, f"{_mark(change.verdict)} {verdict}")
            lines.append("| " + " | ".join(map(escaped, row)) + " |")
        lines.append("")
    return "\n".join(lines)


def _mark(verdict: Verdict) -> str:
    return MARKS[verdict][0]


def escaped(text: str) -> str:
    """For a cell of a table."""
    return text.replace("|", "\\|")


# --- JSON ----------------------------------------------------------------------------------


def as_json(found: SideBySide) -> str:
    """docs/history.md describes it. What is not finite is null, as JSON has no such numbers."""
    return json.dumps(
        {
            "schema": 1,
            "a": run_json(found.a),
            "b": run_json(found.b),
            "alpha": ALPHA,
            "counts": dict(Counter(change.verdict for change in found.changes)),
            "changes": [_change(change) for change in found.changes],
        },
        indent=2,
        allow_nan=False,
    )


def run_json(reference: Reference) -> dict[str, Any]:
    """The runs that a reference is made of."""
    return {
        "asked": reference.asked,
        "runs": [
            {
                "path": str(run.path),
                "commit": run.commit,
                "when": run.when,
                "failed": dict(run.failed),
                "unfinished": run.unfinished,
            }
            for run in reference.runs
        ],
    }


def _change(change: Change) -> dict[str, Any]:
    interval = change.interval
    return {
        "case": change.case,
        "metric": change.metric or None,
        "aspect": aspect(change) or None,
        "a": value_json(change.then),
        "b": value_json(change.now),
        "scale": change.scale,
        "change": finite(change.change),
        "interval": None if interval is None else [finite(x) for x in interval],
        "tolerance": change.tolerance if change.judge else None,
        "p": finite(change.p),
        "verdict": change.verdict,
        "why": change.why,
        "text": change.text,
    }


def value_json(measured: Value | None) -> Mapping[str, Any] | None:
    """A metric, whose interval is null where it is exact."""
    if measured is None:
        return None
    bounds = measured.bounds
    return {
        "value": finite(measured.value),
        "low": None if bounds is None else finite(bounds.low),
        "high": None if bounds is None else finite(bounds.high),
        "unit": measured.unit,
        "better": measured.better,
    }


def finite(x: float | None) -> float | None:
    """None for what JSON cannot say."""
    return x if x is not None and math.isfinite(x) else None
