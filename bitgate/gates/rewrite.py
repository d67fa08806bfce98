"""Writing bounds into the text of `thresholds.toml`, which keeps its order, layout and comments."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bitgate.gates.propose import NewGate, Proposal
from bitgate.gates.thresholds import written

#: in a comment: the bound is what users need, and follows from no measurement
NEED = re.compile(r"\bneeds?\b", re.IGNORECASE)


def needs(text: str) -> set[tuple[str, str]]:
    """Gate and metric of every bound that a comment calls a need: one beside the bound, on a line
    above it in its gate, or beside the gate's name or match.

    The text must be one that `thresholds.load` takes.
    """
    from tomlkit.items import Whitespace

    found: set[tuple[str, str]] = set()
    for gate in _document(text).get("gate", []):
        general, above = "", ""
        for key, item in gate.value.body:
            comment = "" if isinstance(item, Whitespace) else item.trivia.comment
            if key is None:
                above += comment
            elif key.key in ("name", "match"):
                general, above = general + above + comment, ""
            else:
                bounds = list(_bounds(key.key, item))
                comment += "".join(bound.trivia.comment for _, bound in bounds)
                if NEED.search(general + above + comment):
                    found.update((str(gate["name"]), metric) for metric, _ in bounds)
                above = ""
    return found


def rewrite(text: str, changes: Sequence[Proposal], gates: Sequence[NewGate]) -> str:
    """The text with bounds changed, the reason beside each, and gates added at its end."""
    document = _document(text)
    tables = {str(gate["name"]): gate for gate in document.get("gate", [])}
    reasons: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        tables[change.gate]["require"][change.metric][change.key] = _plain(change.bound)
        reasons.setdefault((change.gate, change.metric), []).append(_reason(change))
    for (gate, metric), why in reasons.items():
        _comment(tables[gate], metric, "; ".join(dict.fromkeys(why)))
    new: str = document.as_string()
    if gates and new and not new.endswith("\n"):
        new += "\n"
    return "\n".join(part for part in (new, *map(_gate, gates)) if part)


def diff(path: str, old: str | None, new: str) -> str:
    """What `patch -p1` and `git apply` take, in the folder that `path` is relative to; `old` is
    None if there is no such file yet."""
    before = "/dev/null" if old is None else f"a/{path}"
    lines = difflib.unified_diff(
        (old or "").splitlines(keepends=True), new.splitlines(keepends=True), before, f"b/{path}"
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _document(text: str) -> Any:
    import tomlkit

    return tomlkit.parse(text)


def _bounds(key: str, item: Any) -> Iterator[tuple[str, Any]]:
    """The metrics in one entry of a gate: `require.x = ...`, or a table of several."""
    if key == "require":
        yield from ((str(metric), bound) for metric, bound in item.items())


def _comment(gate: Any, metric: str, reason: str) -> None:
    """Beside the bound, or beside whatever it is within that can have a comment."""
    from tomlkit.items import InlineTable

    require = gate["require"]
    bound = require[metric]
    if isinstance(require, InlineTable):
        require.comment(reason)
    elif isinstance(bound, InlineTable):
        bound.comment(reason)
    else:  # a table of its own
        next(iter(bound.values())).comment(reason)


def _reason(change: Proposal) -> str:
    if not change.looser:
        return change.reason
    assert change.was is not None
    return f"LOOSER than {change.key} {written(change.was)}: {change.reason}"


def _gate(gate: NewGate) -> str:
    match = ", ".join(f"{key} = {_value(value)}" for key, value in gate.match.items())
    lines = ["[[gate]]", f"name = {_value(gate.name)}", f"match = {{ {match} }}"]
    lines += [
        f"require.{bound.metric} = {{ {bound.key} = {written(bound.bound)} }} # {bound.reason}"
        for bound in gate.bounds
    ]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    import tomlkit

    text: str = tomlkit.item(value).as_string()
    return text


def _plain(bound: float) -> int | float:
    """As someone would write it: no `.0`."""
    return int(bound) if bound.is_integer() and abs(bound) < 1e15 else bound
