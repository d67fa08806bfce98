"""Pytest's hooks, from reading the catalog to the table at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bitgate import kernels, quantize
from bitgate.catalog import CatalogError, load
from bitgate.gates import thresholds as gates
from bitgate.gates.thresholds import ThresholdsError
from bitgate.plugin import options
from bitgate.plugin.budget import Budget
from bitgate.plugin.session import CASE, SESSION, Session, session_of


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "workload(kind): the workload of this benchmark (quantize, perplexity, decode, prefill); "
        "the matrix says which cells meet it.",
    )
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
        budget = Budget.of(wanted.budget, wanted.catalog / "costs.toml")
    except (CatalogError, ThresholdsError) as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[SESSION] = Session(wanted, catalog, rules, budget)


def pytest_report_header(config: pytest.Config) -> str | None:
    session = config.stash.get(SESSION, None)
    if session is None:
        return None
    wanted = session.options
    budget = "none" if wanted.budget is None else f"{wanted.budget / 60:g} min"
    return (
        f"bitgate: cadence {wanted.cadence}, budget {budget}, device {wanted.device}, "
        f"gates {session.thresholds.file}"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
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

        why = f"inconclusive: not measured, the budget of {session.budget.minutes} is spent"
        session.results.append(not_measured(case, why))
        if session.options.fail_inconclusive:
            pytest.fail(f"{why}; raise --budget or run fewer cells", pytrace=False)
        pytest.skip(f"{why}; raise --budget or run fewer cells")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Around pytest-benchmark's saving: what changed is read before, scores are saved after."""
    config = session.config
    if SESSION not in config.stash:
        return (yield)
    from bitgate.plugin import saving

    with saving.beside_the_run(config, config.stash[SESSION]):
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    state = terminalreporter.config.stash.get(SESSION, None)
    if state is None or not state.results:
        return
    from bitgate.plugin import summary

    summary.write(terminalreporter, state)
