"""In which processes the speed of a case is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitgate.catalog import Case, EnergyWorkload, Execution, PhaseWorkload
from bitgate.plugin.session import Session

if TYPE_CHECKING:
    from bitgate.measure.measurement import Measurement
    from bitgate.plugin.shelf import Shelf

#: seconds until a fresh process times something: its interpreter, torch, the model
LAUNCH_COST = 15.0


def measurement(session: Session, shelf: Shelf, case: Case, execution: Execution) -> Measurement:
    """Of the phase of `case`, in this process or in fresh ones, as many as --launches says.

    Before fresh ones start, this process lets go of its models, so that never more than one pair
    of them is in memory; the saved cell stays, from which it would be loaded again.
    """
    assert isinstance(case.workload, PhaseWorkload)
    launches, alone = session.options.launches, session.quiet.alone
    spread = session.calibrations.spread(execution, case.key)
    if launches == 1:
        from bitgate.measure.speed import paired_steps

        quantized, base = shelf.quantized(case), shelf.base(case)
        return paired_steps(quantized, base, case.workload, alone, spread=spread)
    from bitgate.measure.launch import Job
    from bitgate.measure.launches import PAIRS, Launches

    job = Job(
        model=case.cell.model,
        method=case.cell.recipe.method,
        quantized=shelf.saved(case),
        execution=execution,
        workload=case.workload,
        pairs=PAIRS,
    )
    shelf.release()
    return Launches(job, launches, spread, alone, label=case.key)


def charge(session: Session) -> None:
    """Tell the budget what the launches will cost, and which cases keep others waiting."""
    for case in session.due.values():
        if isinstance(case.workload, EnergyWorkload) and session.quiet.enabled:
            session.budget.alone.add(case.key)
        if isinstance(case.workload, PhaseWorkload):
            if session.options.launches > 1:
                session.budget.add(case.key, session.options.launches * LAUNCH_COST)
            if session.quiet.enabled:
                session.budget.alone.add(case.key)
