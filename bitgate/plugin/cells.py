"""Which cells each benchmark is asked of, and in which order they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bitgate import kernels
from bitgate.catalog import KINDS, Case
from bitgate.plugin import again, devices, distribution, journal, options
from bitgate.plugin.session import CASE, SESSION, Session, session_of

#: benchmarks were collected, and there is no matrix to tell them their cells
HOMELESS = pytest.StashKey[bool]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for every case of the benchmark's workload that is due."""
    marker = metafunc.definition.get_closest_marker("workload")
    if marker is None:
        return
    kind = marker.args[0] if marker.args else None
    if kind not in KINDS:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: workload({kind!r}): there is {', '.join(KINDS)}"
        )
    if SESSION not in metafunc.config.stash:
        metafunc.config.stash[HOMELESS] = True
        metafunc.parametrize("case", [])
        return
    cases = [c for c in session_of(metafunc.config).due.values() if c.kind == kind]
    chosen = getattr(pytest.mark, kind)  # for -m, as -k also finds the kind in a recipe's name
    params = [pytest.param(case.key, id=case.id, marks=chosen) for case in cases]
    if not cases:
        params = [_none(session_of(metafunc.config), kind)]
    metafunc.parametrize("case", params, indirect=True)


def _none(session: Session, kind: str) -> Any:
    """In place of the cases of a benchmark that has none, for who asks for it alone."""
    later = [case for case in session.catalog.cases() if case.kind == kind]
    reason = f"no case of kind {kind} is in the matrix"
    if later:
        cadence = session.options.cadence
        reason = f"none is due at cadence {cadence}; try --cadence {later[0].cadence}"
    return pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))


def case_of(item: pytest.Item, due: Mapping[str, Case]) -> Case | None:
    """Which of the cases that are due a test is of; also of one that was left out."""
    callspec = getattr(item, "callspec", None)
    return due.get(callspec.params.get("case", "")) if callspec else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the cases of a model, and within it those of a cell, together: each model is loaded
    once and each cell quantized once."""
    if config.stash.get(HOMELESS, False):  # one error, where collecting would give one each
        raise pytest.UsageError(
            f"{options.read(config).catalog / 'matrix.toml'} is missing: it says which models meet "
            "which recipes; give the folder that has it with --catalog"
        )
    session = config.stash.get(SESSION, None)
    if session is None:
        return
    due = session.due
    models: dict[str, int] = {}
    cells: dict[str, int] = {}
    for item in items:
        case = case_of(item, due)
        if case is not None:
            item.stash[CASE] = case
    if any(CASE in item.stash for item in items):  # then nobody asks why one has none
        items[:] = [i for i in items if CASE in i.stash or not i.get_closest_marker("workload")]
    for case in due.values():
        models.setdefault(case.cell.model.name, len(models))
        cells.setdefault(case.cell.id, len(cells))

    def place(item: pytest.Item) -> tuple[int, int, int]:
        case = item.stash.get(CASE, None)
        if case is None:
            return (-1, 0, 0)
        return (models[case.cell.model.name], cells[case.cell.id], KINDS.index(case.kind))

    items.sort(key=place)  # stable: everything else stays as pytest ordered it
    session.order = {item.nodeid: number for number, item in enumerate(items)}
    session.quiet.among_cases = any(CASE in item.stash for item in items)
    journal.deselect(config, items)
    again.deselect(config, items)
    _refuse_without_kernel(config, items)
    session.budget.plan([item.stash[CASE].key for item in items if CASE in item.stash])


def _refuse_without_kernel(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Who forces a kernel wants it measured: nothing begins where its library is not installed. On
    a CPU another error says more: that the kernel does not run there. A worker cannot end the run:
    each of its cases fails, with the same reason, when its kernel is chosen."""
    if distribution.is_worker(config) or not devices.on_accelerator(config):
        return
    recipes = [item.stash[CASE].cell.recipe for item in items if CASE in item.stash]
    for recipe in recipes:
        if reason := kernels.missing(recipe.kernel):
            raise pytest.UsageError(f"recipe {recipe.name}: {reason}")
