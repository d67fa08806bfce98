"""What a run says of each cell: the records of all its workloads together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitgate.history.record import OUTCOMES
from bitgate.history.saved import RunError
from bitgate.history.schema import Absent, Record, Value
from bitgate.history.store import Reference

#: bits of a number of the base
DTYPE_BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}


@dataclass
class CellResults:
    """One model under one recipe, as it was executed on one kind of device."""

    model: str
    recipe: Mapping[str, Any]
    device: str = ""
    kernel: str = ""
    dtype: str = ""
    #: in the run's order
    records: list[Record] = field(default_factory=list)
    #: what was to be measured, too, and was not
    absent: list[Absent] = field(default_factory=list)
    #: what failed by case, where no verdict says why
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.recipe["name"])

    @property
    def method(self) -> str:
        return str(self.recipe.get("method", ""))

    def of(self, kind: str) -> Iterator[Record]:
        return (record for record in self.records if record.kind == kind)

    def exact(self, metric: str) -> Value | None:
        """A metric of quantizing."""
        return next((r.metrics[metric] for r in self.of("quantize") if metric in r.metrics), None)

    @property
    def layer_classes(self) -> str:
        """What serves its layers, where the kernel's name does not say."""
        counts = (record.metrics.get("packed_layers") for record in self.records)
        return next((count.by for count in counts if count is not None and count.by), "")

    @property
    def relative_size(self) -> float | None:
        """The saved file over the base."""
        size, base = self.exact("size_mib"), self.exact("base_size_mib")
        if size is None or base is None or not base.value:
            return None
        return size.value / base.value

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of the saved file, scales and what is left as it was included, for each number of
        the base, embedding included; a tied one counts once."""
        relative, bits = self.relative_size, DTYPE_BITS.get(self.dtype)
        return None if relative is None or bits is None else relative * bits

    @property
    def outcome(self) -> str:
        """The worst of its cases: one of OUTCOMES, `recorded`, or `skipped` if there is none."""
        found = {record.outcome for record in self.records}
        if any(absent.failed for absent in self.absent) or self.broken:
            found.add("fail")
        elif self.absent and found:
            found.add("inconclusive")
        elif self.absent:
            return "skipped"
        return next((outcome for outcome in OUTCOMES if outcome in found), "recorded")


def cells_of(reference: Reference, wanted: Callable[[str], bool]) -> list[CellResults]:
    """The cells of a reference with the cases that are wanted, of each case the newest record.

    Raises:
        RunError: if no case is wanted.
    """
    found: dict[tuple[str, ...], CellResults] = {}
    newest: dict[str, str] = {}
    for run in reference.runs:
        for case, records in run.records.items():
            if not wanted(case) or newest.setdefault(case, str(run.path)) != str(run.path):
                continue
            for record in records:
                cell = _cell(found, record)
                cell.records.append(record)
                judged = any(verdict.get("outcome") == "fail" for verdict in record.verdicts)
                if case in run.failed and not judged:
                    cell.broken[case] = run.failed[case]
    cells = list(found.values())
    for absent in _absent(reference, cells):
        if wanted(absent.case) and absent.case not in newest:
            _add(cells, absent)
    if not cells:
        raise RunError(f"{reference.title}: no case is called so; there is {_some(reference)}")
    return cells


def _some(reference: Reference) -> str:
    cases = reference.cases
    return ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if cases[3:] else "")


def _cell(found: dict[tuple[str, ...], CellResults], record: Record) -> CellResults:
    ran = record.execution
    device = ran.device.partition(":")[0]
    recipe = record.recipe if "name" in record.recipe else {"name": inside(record.case)}
    key = (record.model, str(recipe["name"]), device, ran.kernel, ran.dtype)
    if key not in found:
        found[key] = CellResults(record.model, recipe, device, ran.kernel, ran.dtype)
    return found[key]


def inside(case: str) -> str:
    """`m-hqq-w4g64-b1` of `decode[m-hqq-w4g64-b1]`."""
    return case.partition("[")[2].removesuffix("]")


def _absent(reference: Reference, cells: Sequence[CellResults]) -> Iterator[Absent]:
    """Also what failed in runs that say only its name: which cell that is, is then read from it."""
    for run in reference.runs:
        yield from run.absent
        told = {absent.case for absent in run.absent}
        for case, why in run.failed.items():
            if case in run.records or case in told:
                continue
            cell = next((c for c in cells if inside(case).startswith(f"{c.model}-{c.name}")), None)
            recipe = {"name": inside(case) or case} if cell is None else cell.recipe
            model = "" if cell is None else cell.model
            yield Absent(case=case, model=model, recipe=dict(recipe), why=why, failed=True)


def _add(cells: list[CellResults], absent: Absent) -> None:
    known = [c for c in cells if (c.model, c.name) == (absent.model, absent.recipe.get("name"))]
    if not known:
        recipe = absent.recipe if "name" in absent.recipe else {"name": inside(absent.case)}
        known = [CellResults(absent.model, recipe)]
        cells += known
    if all(absent.case != other.case for other in known[0].absent):  # the newest run says why
        known[0].absent.append(absent)


def front(points: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Those of which no other is smaller in one number and not larger in the other."""
    out: set[tuple[float, float]] = set()
    best = math.inf
    for x, y in sorted({point for point in points if all(map(math.isfinite, point))}):
        if y < best:
            best = y
            out.add((x, y))
    return out
