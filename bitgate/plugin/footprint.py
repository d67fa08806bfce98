"""What the cases of memory and energy measure, each thing once: cases that differ in their batch
share how their cell was quantized, and cells of a model share its base."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from bitgate.catalog import Case, EnergyWorkload, Execution, MemoryWorkload
from bitgate.measure.measurement import MeasureError
from bitgate.plugin.session import Session
from bitgate.plugin.shelf import Shelf

if TYPE_CHECKING:
    from bitgate.measure.energy import Energy
    from bitgate.measure.energy_meter import EnergyMeter, Used
    from bitgate.measure.memory import PeakMemory
    from bitgate.measure.memory_process import Seen

T = TypeVar("T")


class Kept:
    """Values by key, each made when it is first asked for. What cannot be measured is not tried
    again for each batch: a process that hangs takes half an hour."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}
        self._refused: dict[Hashable, MeasureError] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key in self._refused:
            raise self._refused[key].with_traceback(None)
        if key not in self._values:
            try:
                self._values[key] = make()
            except MeasureError as error:
                self._refused[key] = error
                raise
        found: T = self._values[key]
        return found


def memory(
    shelf: Shelf, case: Case, execution: Execution, kept: Kept, asked: Sequence[Case]
) -> PeakMemory:
    """One process for all batches that are `asked` of the cell, one for all of its base; before
    they start, this one lets go of its models."""
    from bitgate.measure.memory import peaks, watched

    workload, cell = case.workload, case.cell
    assert isinstance(workload, MemoryWorkload)

    def see(cases: Sequence[Case], of_base: bool) -> Seen:
        ordered = sorted({c.workload.name: c for c in (case, *cases)}.values(), key=_batch)
        batches = {c.workload.name: shelf.inputs(c)[0] for c in ordered}
        shelf.release()
        what = "of the base" if of_base else f"of {cell.recipe.name}"
        ran = replace(execution, kernel="torch") if of_base else execution
        label = f"peak memory {what}, {cell.model.name}"
        return watched(cell.model, None if of_base else cell, ran, batches, label)

    same_kind = [other for other in asked if isinstance(other.workload, MemoryWorkload)]
    of_cell = [other for other in same_kind if other.cell == cell]
    of_model = [other for other in same_kind if other.cell.model == cell.model]
    return peaks(
        workload,
        lambda: kept.once(("memory", cell.id, execution), lambda: see(of_cell, of_base=False)),
        lambda: kept.once(("memory", cell.model.name), lambda: see(of_model, of_base=True)),
    )


def _batch(case: Case) -> int:
    """The smallest first: where peaks cannot be reset, what grows is seen best."""
    assert isinstance(case.workload, MemoryWorkload)
    return case.workload.batch


def energy(session: Session, shelf: Shelf, case: Case, execution: Execution, kept: Kept) -> Energy:
    """In this process: the cell is quantized once more, for its energy, and then kept."""
    from bitgate.measure.energy import energy, evaluating
    from bitgate.measure.energy_meter import EnergyMeter
    from bitgate.quantize import method, warm

    workload, cell, alone = case.workload, case.cell, session.quiet.alone
    assert isinstance(workload, EnergyWorkload)
    batches = shelf.inputs(case)

    def meter() -> EnergyMeter:
        settings = session.energy
        return kept.once("meter", lambda: EnergyMeter(settings, execution.device))

    def quantizing() -> Used:
        base = shelf.model(case)
        dtype = next(base.module.parameters()).dtype
        made = []

        def quantize() -> None:
            made.append(method(cell.recipe.method).quantize(base, cell.recipe, dtype))

        warm(cell.recipe.method)
        with alone():
            used = meter().measure(quantize)
        shelf.keep(made.pop())
        return used

    return energy(
        workload,
        batches,
        lambda: kept.once(("quantizing", cell.id), quantizing),
        lambda: kept.once(
            ("base", cell.model.name, workload.name),
            lambda: evaluating(meter(), shelf.base(case), batches, alone),
        ),
        lambda: evaluating(meter(), shelf.quantized(case), batches, alone),
    )
