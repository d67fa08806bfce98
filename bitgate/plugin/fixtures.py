"""The fixtures that benchmarks are written with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bitgate.catalog import Case, Cell, Execution, Workload
from bitgate.plugin.session import CASE, session_of

if TYPE_CHECKING:
    from bitgate.kernels.served import Served
    from bitgate.measure.base import BaseModel
    from bitgate.plugin.gate import GateFixture
    from bitgate.plugin.quiet import Quiet
    from bitgate.plugin.shelf import Shelf
    from bitgate.sources import Windows


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The cell and the workload that this test is about."""
    key = getattr(request, "param", None)
    if key is None and CASE not in request.node.stash:
        raise pytest.UsageError(f"{request.node.nodeid}: mark it with pytest.mark.workload(kind)")
    found: Case = request.node.stash[CASE]
    return found


@pytest.fixture
def cell(case: Case) -> Cell:
    """A model under a recipe."""
    return case.cell


@pytest.fixture
def workload(case: Case) -> Workload:
    """What the cell is asked to do."""
    return case.workload


@pytest.fixture(scope="session")
def shelf(request: pytest.FixtureRequest) -> Any:
    """Where the model and the quantized cell at work lie; one of each at a time."""
    from bitgate.plugin.shelf import Shelf

    shelf = Shelf(session_of(request.config).options)
    yield shelf
    shelf.clear()


@pytest.fixture
def execution(shelf: Shelf, case: Case) -> Execution:
    """Device, kernel, dtype and threads of this case."""
    return shelf.execution(case)


@pytest.fixture
def base(shelf: Shelf, case: Case, execution: Execution) -> BaseModel:
    """The unquantized model, served as the quantized one is."""
    return shelf.base(case)


@pytest.fixture
def quantized(shelf: Shelf, case: Case, execution: Execution) -> Served:
    """The quantized model, served by the kernel that `execution` names."""
    return shelf.quantized(case)


@pytest.fixture
def speed(request: pytest.FixtureRequest, shelf: Shelf, case: Case, execution: Execution) -> Any:
    """The measurement of this case's phase, decode or prefill, in turn with the base: in this
    process, or with --launches in fresh ones."""
    from bitgate.plugin.timing import measurement

    return measurement(session_of(request.config), shelf, case, execution)


@pytest.fixture
def text(shelf: Shelf, case: Case) -> Windows:
    """The windows of the workload's text, as this model's tokens."""
    return shelf.text(case)


@pytest.fixture
def quiet(request: pytest.FixtureRequest) -> Quiet:
    """`quiet.alone()`: while it is entered, no other worker of this host is at work."""
    return session_of(request.config).quiet


@pytest.fixture
def gate(
    request: pytest.FixtureRequest, shelf: Shelf, case: Case, execution: Execution
) -> GateFixture:
    """`gate.decide(benchmark, measurement)`: measure until every rule for this case is decided,
    record everything, then fail with all rules that were missed."""
    from bitgate.plugin.gate import GateFixture

    return GateFixture(session_of(request.config), request.node, case, execution, shelf.prepared)
