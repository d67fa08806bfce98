"""Pytest's hooks, from reading the catalog to the table at the end."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from bitgate import kernels, quantize
from bitgate.catalog import KINDS, CatalogError, load
from bitgate.gates import thresholds as gates
from bitgate.gates.thresholds import ThresholdsError
from bitgate.history import origin
from bitgate.kernels import KernelError
from bitgate.measure import calibration
from bitgate.measure.calibration import Calibrations
from bitgate.measure.measurement import MeasureError
from bitgate.plugin import against, benchmark, devices, hosts, journal, options, parcel, timing
from bitgate.plugin.budget import Budget
from bitgate.plugin.quiet import Quiet
from bitgate.plugin.session import CASE, RESULT, SESSION, Session, session_of
from bitgate.quantize import QuantizeError
from bitgate.sources.errors import SourceError


def pytest_configure(config: pytest.Config) -> None:
    origin.checkout = config.rootpath
    devices.refuse_too_many(config)
    benchmark.refuse_to_draw(config)
    benchmark.before_its_session(config)
    config.addinivalue_line(
        "markers",
        "workload(kind): the workload of this benchmark (quantize, perplexity, decode, prefill); "
        "the matrix says which cells meet it.",
    )
    for kind in KINDS:
        config.addinivalue_line("markers", f"{kind}: every case of such a workload has it, for -m.")
    if not benchmark.is_worker(config):
        config.pluginmanager.register(Books(config), "bitgate-books")
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
        gates.check(rules, catalog.cases(), kernels.DEVICES, kernels.NAMES)
        budget = Budget.of(wanted.budget, wanted.catalog / "costs.toml", wanted.workers)
        known = Calibrations.read(calibration.user_file(), wanted.catalog / calibration.FILE)
    except (CatalogError, ThresholdsError) as error:
        raise pytest.UsageError(str(error)) from None
    quiet = Quiet.of(config, budget.pause)
    config.stash[SESSION] = Session(wanted, catalog, rules, budget, quiet, known)
    timing.charge(config.stash[SESSION])
    journal.install(config)
    against.install(config)


def pytest_report_header(config: pytest.Config) -> str | None:
    session = config.stash.get(SESSION, None)
    if session is None:
        return None
    wanted = session.options
    budget = "none" if wanted.budget is None else f"{wanted.budget / 60:g} min"
    return (
        f"bitgate: cadence {wanted.cadence}, budget {budget}, device {wanted.device}, "
        f"launches {wanted.launches}, gates {session.thresholds.file}"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    benchmark.switch_on(session.config)
    keeper = journal.keeper_of(session.config)
    if keeper is not None:
        keeper.start()
    if SESSION in session.config.stash:
        session.config.stash[SESSION].budget.start()
        from bitgate.plugin import progress

        progress.route(session.config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Charge a case for everything that happens on its account."""
    if CASE not in item.stash:
        return (yield)
    session, key = session_of(item.config), item.stash[CASE].key
    with session.quiet.working():
        session.budget.begin(key)
        try:
            return (yield)
        finally:
            session.budget.end(key)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Do not begin what the budget has no room for: it stays inconclusive, and is said to be."""
    if CASE not in item.stash:
        return
    session, case = session_of(item.config), item.stash[CASE]
    if session.budget.refuses(case.key):
        from bitgate.history.record import not_measured

        why = (
            f"not measured: it needs about {session.budget.cost(case.key):.0f} s, and "
            f"{max(session.budget.left, 0):.0f} s are left of the budget of "
            f"{session.budget.minutes}; raise --budget or run fewer cells"
        )
        item.stash[RESULT] = not_measured(case, why)
        if session.options.fail_inconclusive:
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a case has measured leaves with its last report."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, PLAIN):
        report.longrepr = f"{type(call.excinfo.value).__name__}: {call.excinfo.value}"
    if report.when == "teardown":
        parcel.attach(item, report)
    return report


#: errors whose message says all; how they came about would only bury it
PLAIN = (SourceError, QuantizeError, KernelError, MeasureError)


class Books:
    """Kept by the controller, or by the only process there is."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        session = self.config.stash.get(SESSION, None)
        if session is not None and report.failed:
            session.failed[report.nodeid] = _last_line(report)
        if session is not None and report.skipped:
            session.skipped[report.nodeid] = _last_line(report)
        arrived = parcel.take(report)
        keeper = journal.keeper_of(self.config)
        if keeper is not None:  # first of all: what is on disk cannot be lost any more
            keeper.keep(report, arrived)
        if arrived is not None:
            parcel.enter(self.config, arrived, here=not benchmark.is_distributed(self.config))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        benchmark.tell_neighbours(node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Before pytest-benchmark's saving: all records, in order."""
    config = session.config
    if benchmark.is_worker(config):
        benchmark.switch_off(config)
        return (yield)
    if SESSION not in config.stash:
        return (yield)
    from bitgate.plugin import saving

    keeper = journal.keeper_of(config)
    if keeper is not None and session.exitstatus != pytest.ExitCode.USAGE_ERROR:
        keeper.enter_resumed()
    benchmark.sort(config, config.stash[SESSION].order)
    saving.settle(config, config.stash[SESSION])
    saving.beside_the_run(config, config.stash[SESSION])
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """A saved run says what failed in it, as no such run may be compared with."""
    if SESSION in config.stash:
        from bitgate.plugin import saving

        saving.say_what_failed(config, config.stash[SESSION], output_json)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    state = terminalreporter.config.stash.get(SESSION, None)
    if state is None or terminalreporter.config.getoption("collectonly"):
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
