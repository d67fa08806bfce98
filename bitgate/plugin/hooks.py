"""Pytest's hooks, from reading the catalog to the table at the end."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from bitgate import kernels, quantize
from bitgate.catalog import KINDS, Catalog, CatalogError, Kind, load
from bitgate.catalog.energy import read_energy
from bitgate.gates import thresholds as gates
from bitgate.gates.thresholds import ThresholdsError
from bitgate.history import origin
from bitgate.history.saved import names
from bitgate.kernels import KernelError
from bitgate.kernels.extra import FINETUNE, Extra
from bitgate.measure import calibration
from bitgate.measure.calibration import Calibrations
from bitgate.measure.measurement import MeasureError
from bitgate.plugin import (
    against,
    benchmark,
    devices,
    distribution,
    hosts,
    journal,
    options,
    parcel,
    sharing,
    timing,
)
from bitgate.plugin.budget import Budget
from bitgate.plugin.options import Options
from bitgate.plugin.quiet import Quiet
from bitgate.plugin.session import CASE, RESULT, SESSION, Session, session_of
from bitgate.quantize import QuantizeError
from bitgate.quantize.lock import LockError, Locks
from bitgate.quantize.misfits import misfits
from bitgate.sources.errors import DoesNotFit, SourceError


def pytest_configure(config: pytest.Config) -> None:
    origin.checkout = config.rootpath
    benchmark.refuse_without_it(config)
    devices.refuse_to_share(config)
    benchmark.refuse_to_draw(config)
    benchmark.before_its_session(config)
    config.addinivalue_line(
        "markers",
        f"workload(kind): the workload of this benchmark ({', '.join(KINDS)}); "
        "the matrix says which cells meet it.",
    )
    for kind in KINDS:
        config.addinivalue_line("markers", f"{kind}: every case of such a workload has it, for -m.")
    if not distribution.is_worker(config):
        config.pluginmanager.register(Books(config), BOOKS)
    hosts.watch(config)
    wanted = options.read(config)
    if not (wanted.catalog / "matrix.toml").is_file() and config.getoption("catalog") is None:
        return  # a project without benchmarks; those that ask for a case are told
    try:
        catalog = load(wanted.catalog, quantize.recipe_types())
        # as it is called in messages: short where it lies in the project
        name = str(wanted.thresholds)
        if wanted.thresholds.is_relative_to(config.rootpath):
            name = str(wanted.thresholds.relative_to(config.rootpath))
        rules = gates.load(wanted.thresholds, name)
        gates.check(rules, catalog.cases(), kernels.DEVICES, quantize.kernel_names())
        costs = wanted.catalog / "costs.toml"
        neighbours = distribution.neighbours(config)
        budget = Budget.of(wanted.budget, costs, wanted.workers, neighbours)
        known = Calibrations.read(calibration.user_file(), wanted.catalog / calibration.FILE)
        unlocked = _refuse_misfits(config, wanted, catalog)
        energy = read_energy(wanted.catalog)
    except (CatalogError, ThresholdsError, LockError) as error:
        raise pytest.UsageError(str(error)) from None
    quiet = Quiet.of(config, budget.pause)
    config.stash[SESSION] = Session(wanted, catalog, rules, budget, quiet, known, unlocked, energy)
    timing.charge(config.stash[SESSION])
    journal.install(config)
    against.install(config)


def _refuse_misfits(config: pytest.Config, wanted: Options, catalog: Catalog) -> list[str]:
    """All recipes due that no device can serve are one error, said by the controller. Returns the
    models whose shapes are not known, so that this is not."""
    if distribution.is_worker(config):
        return []
    device = "cuda" if devices.on_accelerator(config) else "cpu"
    found, unlocked = misfits(catalog, wanted.cadence, Locks.read(wanted.catalog), device)
    if found:
        raise pytest.UsageError("\n".join(map(str, found)))
    return unlocked


def pytest_report_header(config: pytest.Config) -> list[str]:
    session = config.stash.get(SESSION, None)
    if session is None:
        return []
    wanted = session.options
    budget = "none" if wanted.budget is None else f"{wanted.budget / 60:g} min"
    asked = (
        f"bitgate: cadence {wanted.cadence}, budget {budget}, device {wanted.device}, "
        f"launches {wanted.launches}, gates {session.thresholds.file}"
    )
    lines = [asked]
    if session.unlocked:
        lines.append(
            f"bitgate: not known before they are loaded: the shapes of {names(session.unlocked)}; "
            "`bitgate lock` writes them down, and recipes that do not fit are refused at once"
        )
    if devices.on_accelerator(config):
        without = kernels.passed_over("cuda")
        lines += [f'bitgate: {why}; kernel = "auto" serves without it' for why in without]
    return lines


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    benchmark.switch_on(session.config)
    keeper = journal.keeper_of(session.config)
    if keeper is not None:
        keeper.start()
    if SESSION in session.config.stash:
        sharing.start(session.config, session.config.stash[SESSION])
        from bitgate.plugin import progress

        progress.route(session.config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep quiet while others time; charge a case for all that happens on its account."""
    session = item.config.stash.get(SESSION, None)
    if session is None:
        return (yield)
    if CASE not in item.stash:
        with session.quiet.working() if session.quiet.among_cases else nullcontext():
            return (yield)
    key = item.stash[CASE].key
    with session.quiet.working():
        session.budget.begin(key)
        try:
            return (yield)
        except KeyboardInterrupt:
            parcel.rescue(item)
            raise
        finally:
            session.budget.end(key)


#: what a kind of workload needs beside Bitgate itself
EXTRAS: dict[Kind, Extra] = {"finetune": FINETUNE}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """What the memory has no room for stays inconclusive, and is said to be."""
    with _skipping_what_does_not_fit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What does not fit may be found out as late as here."""
    with _skipping_what_does_not_fit(item):
        return (yield)


@pytest.hookimpl(specname="pytest_runtest_setup", tryfirst=True)
def pytest_runtest_begin(item: pytest.Item) -> None:
    """Do not begin what needs a package that is not there, nor what the budget has no room for: it
    stays inconclusive, and is said to be. No wrapper, as those of others must be entered before
    they are left."""
    if CASE not in item.stash:
        return
    from bitgate.history.record import not_measured

    session, case = session_of(item.config), item.stash[CASE]
    for extra in (quantize.method(case.cell.recipe.method).EXTRA, EXTRAS.get(case.kind)):
        if extra is not None and (missing := extra.missing()) is not None:
            item.stash[RESULT] = not_measured(case, missing)
            pytest.skip(missing)
    if session.budget.refuses(case.key):
        why = session.budget.why_not(case.key)
        item.stash[RESULT] = not_measured(case, why)
        if session.options.fail_inconclusive:
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


@contextmanager
def _skipping_what_does_not_fit(item: pytest.Item) -> Iterator[None]:
    """A case that needs more memory than there is here is not measured, and is said not to be."""
    try:
        yield
    except DoesNotFit as error:
        if CASE not in item.stash:
            raise
        from bitgate.history.record import not_measured

        item.stash[RESULT] = not_measured(item.stash[CASE], str(error))
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a case has measured leaves with its last report."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, PLAIN):
        report.longrepr = f"{type(call.excinfo.value).__name__}: {call.excinfo.value}"
    if report.when == "call":
        item.stash[parcel.CALLED] = True
    if report.when == "teardown":
        parcel.attach(item, report)
    return report


#: errors whose message says all; how they came about would only bury it
PLAIN = (SourceError, QuantizeError, KernelError, MeasureError)


BOOKS = "bitgate-books"


class Books:
    """Kept by the controller, or by the only process there is."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.lost = 0  #: workers that died
        #: a report, and what it brought, until that is in the books
        self.in_hand: tuple[pytest.TestReport, dict[str, Any] | None] | None = None
        #: what workers have still to run; None until one has collected
        self.waiting: set[str] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.waiting is not None and report.when == "teardown":
            self.waiting.discard(report.nodeid)
        session = self.config.stash.get(SESSION, None)
        if session is not None and report.failed:
            session.failed[report.nodeid] = _last_line(report)
        if session is not None and report.skipped:
            session.skipped[report.nodeid] = _last_line(report)
        self.in_hand = report, parcel.take(report)
        try:
            self.book()
        except Exception:  # it would not be taken later either
            self.in_hand = None
            raise

    def book(self) -> None:
        """Keep and enter what has arrived last: once more at the end of the session, if an
        interrupt came in between."""
        if self.in_hand is None:
            return
        report, arrived = self.in_hand
        keeper = journal.keeper_of(self.config)
        if keeper is not None:  # first of all: what is on disk cannot be lost any more
            keeper.keep(report, arrived)
        if arrived is not None:
            parcel.enter(self.config, arrived, here=not distribution.is_distributed(self.config))
        self.in_hand = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self) -> None:
        distribution.bound_restarts(self.config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        distribution.tell_neighbours(node)
        if SESSION in self.config.stash:
            sharing.tell(node, self.config.stash[SESSION])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object) -> None:
        self.lost += error is not None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Workers that all died before they ran anything have failed no test: for xdist that is a
        run in which all went well."""
        done = yield
        if self.lost and self.waiting != set() and not session.testsfailed:
            raise session.Interrupted(
                f"{self.lost} workers died; {len(self.waiting or ()) or 'the'} tests were not run"
            )
        return done

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if self.waiting is None:
            self.waiting = set(ids)
        session = self.config.stash.get(SESSION, None)
        if session is not None and not session.order:
            session.order = {nodeid: number for number, nodeid in enumerate(ids)}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """After pytest-benchmark's saving, which is in a wrapper; before anything is printed."""
        state = self.config.stash.get(SESSION, None)
        if state is None:
            return
        from bitgate.plugin import saving

        saving.beside_the_json(self.config, state)
        keeper = journal.keeper_of(self.config)
        if keeper is not None:
            keeper.saved(session.exitstatus)


@pytest.hookimpl(wrapper=True)
def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> Iterator[None]:
    """Some of Python's instructions stand on no line. One that the signal met there makes pytest
    fail with a TypeError where it wants to show the place (seen with Python 3.11, pytest 9.2)."""
    excinfo.traceback = excinfo.traceback.filter(_stands_on_a_line)
    return (yield)


def _stands_on_a_line(entry: Any) -> bool:
    try:
        return bool(entry.lineno >= 0)
    except TypeError:
        return False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Before pytest-benchmark's saving: all records, in order."""
    config = session.config
    if distribution.is_worker(config):
        benchmark.switch_off(config)
        distribution.may_end_unheard(config)
        return (yield)
    if SESSION not in config.stash:
        return (yield)
    from bitgate.plugin import saving

    books = config.pluginmanager.get_plugin(BOOKS)
    assert books is not None
    books.book()
    keeper = journal.keeper_of(config)
    if keeper is not None and session.exitstatus != pytest.ExitCode.USAGE_ERROR:
        keeper.enter_resumed()
    benchmark.sort(config, config.stash[SESSION].order)
    if session.exitstatus == pytest.ExitCode.INTERRUPTED:
        benchmark.forget_nothing_measured(config)
    saving.settle(config, config.stash[SESSION])
    saving.beside_the_run(config, config.stash[SESSION])
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """A saved run says what failed in it, as no such run may be compared with."""
    if SESSION in config.stash:
        from bitgate.plugin import saving

        saving.say_what_failed(config, config.stash[SESSION], output_json)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode
) -> None:
    state = terminalreporter.config.stash.get(SESSION, None)
    if state is None:
        return
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        from bitgate.plugin import summary

        summary.say_what_is_due(terminalreporter, state)
    if terminalreporter.config.getoption("collectonly"):
        return
    if state.all_in_order():
        from bitgate.plugin import summary

        summary.write(terminalreporter, state)
    against.write(terminalreporter)
    keeper = journal.keeper_of(terminalreporter.config)
    if keeper is not None:
        keeper.tell(terminalreporter)


def _last_line(report: pytest.TestReport) -> str:
    """What a failure or a skip says in the end."""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "failed"
