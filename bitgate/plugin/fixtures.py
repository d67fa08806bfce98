"""The fixtures that benchmarks are written with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bitgate.catalog import Case, Cell, Execution, Workload
from bitgate.plugin.session import CASE, session_of

if TYPE_CHECKING:
    from bitgate.kernels.served import Served
    from bitgate.measure.base import BaseModel
    from bitgate.measure.energy import Energy
    from bitgate.measure.memory import PeakMemory
    from bitgate.measure.tuned import Tuned
    from bitgate.plugin.footprint import Kept
    from bitgate.plugin.gate import GateFixture
    from bitgate.plugin.quiet import Quiet
    from bitgate.plugin.shelf import Shelf
    from bitgate.sources import EncodedItems, LoadedModel, Prompts, Questions, Windows


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
    from bitgate.quantize.lock import Locks

    options = session_of(request.config).options
    shelf = Shelf(options, Locks.read(options.catalog))
    yield shelf
    shelf.clear()


@pytest.fixture
def execution(shelf: Shelf, case: Case) -> Execution:
    """Device, kernel, dtype and threads of this case."""
    return shelf.execution(case)


@pytest.fixture
def model(shelf: Shelf, case: Case, execution: Execution) -> LoadedModel:
    """The unquantized model as it was loaded, with its tokenizer: what is quantized."""
    return shelf.model(case)


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


@pytest.fixture(scope="session")
def kept() -> Kept:
    """What was measured once for several cases."""
    from bitgate.plugin.footprint import Kept

    return Kept()


@pytest.fixture
def memory(
    request: pytest.FixtureRequest, shelf: Shelf, case: Case, execution: Execution, kept: Kept
) -> PeakMemory:
    """The measurement of this case's peaks of memory, in processes of their own."""
    from bitgate.plugin.footprint import memory

    asked = [item.stash[CASE] for item in request.session.items if CASE in item.stash]
    return memory(shelf, case, execution, kept, asked)


@pytest.fixture
def energy(
    request: pytest.FixtureRequest, shelf: Shelf, case: Case, execution: Execution, kept: Kept
) -> Energy:
    """The measurement of the energy that quantizing and evaluating this case take."""
    from bitgate.plugin.footprint import energy

    return energy(session_of(request.config), shelf, case, execution, kept)


@pytest.fixture
def text(shelf: Shelf, case: Case, execution: Execution) -> Windows:
    """The windows of the workload's text, as this model's tokens."""
    return shelf.text(case)


@pytest.fixture
def items(shelf: Shelf, case: Case, execution: Execution) -> EncodedItems:
    """The labelled items of the workload, as this model takes them."""
    return shelf.items(case)


@pytest.fixture
def questions(shelf: Shelf, case: Case, execution: Execution) -> Questions:
    """The items of the workload's task, as lm-eval asks them."""
    return shelf.questions(case)


@pytest.fixture
def prompts(shelf: Shelf, case: Case, execution: Execution) -> Prompts:
    """The prompts for the workload's documents, as this model's tokens."""
    return shelf.prompts(case)


@pytest.fixture
def tuned(shelf: Shelf, case: Case, execution: Execution) -> Tuned:
    """The fine-tuned model: as it was trained, merged, and deployed by the cell's recipe."""
    return shelf.tuned(case)


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
