"""`--against`: when all cases are measured, each is compared with earlier runs."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace

import pytest

from bitgate.gates.verdict import Verdict
from bitgate.history import origin
from bitgate.history.accepted import FILE
from bitgate.history.against import Comparison, against, side_of
from bitgate.history.change import TIMED, Change, regressions
from bitgate.history.compare import combined
from bitgate.history.record import Result
from bitgate.history.saved import RunError, Side
from bitgate.history.schema import Record
from bitgate.history.store import ACCEPTED, Reference, Store
from bitgate.metric import number
from bitgate.plugin import again, benchmark, distribution, journal
from bitgate.plugin.session import SESSION, Session
from bitgate.report.comparison import counts


def install(config: pytest.Config) -> None:
    """Compare, if that was asked for, in whatever process keeps the books."""
    if not config.getoption("against") or distribution.is_worker(config) or again.is_again():
        return
    if not config.getoption("collectonly"):
        config.pluginmanager.register(Against(config, config.stash[SESSION]), PLUGIN)


def write(reporter: pytest.TerminalReporter) -> None:
    """What came of it, at the end of the run."""
    keeper = reporter.config.pluginmanager.get_plugin(PLUGIN)
    if keeper is not None:
        keeper.write(reporter)


PLUGIN = "bitgate-against"
#: what is said of a metric that was compared
JUDGED = ("regression", "inconclusive", "better", "unchanged")


class Against:
    """Finds the references before anything is measured, and compares when everything is."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session
        self.references: list[Reference] = []
        self.store = Store([], config.rootpath)
        self.comparisons: list[Comparison] | None = None
        #: what was said of measuring again
        self.notes: list[str] = []

    # --- before ---

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        folder = benchmark.storage_path(self.config)
        accepted = self.session.options.thresholds.parent / FILE
        self.store = Store([folder.parent] if folder else [], accepted)
        wanted = list(dict.fromkeys(self.config.getoption("against")))
        if accepted.is_file() and ACCEPTED not in wanted:
            wanted.append(ACCEPTED)  # or small steps for the worse would add up unseen
        try:
            self.references = [self.store.reference(asked) for asked in wanted]
        except RunError as error:
            raise pytest.UsageError(f"--against {error}") from None

    def pytest_report_header(self) -> list[str]:
        lines = [f"bitgate: against {reference.title}" for reference in self.references]
        return [*lines, *(f"bitgate: left out: {why}" for why in self.store.refused.values())]

    # --- after ---

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        done = yield
        keeper = journal.keeper_of(self.config)
        if keeper is not None:
            keeper.enter_resumed()
        self._compare()
        return done

    def _compare(self) -> None:
        sides = {
            result.case.key: side_of(result)
            for result in self.session.in_order()
            if result.execution is not None
        }
        tolerances = self.session.thresholds.against
        self.comparisons = against(sides, self.references, tolerances)
        measured = self._again(sides)
        if measured:
            both = {
                case: replace(side, record=combined(side.record, measured[case]))
                if case in measured
                else side
                for case, side in sides.items()
            }
            self.comparisons = against(both, self.references, tolerances)
        self._add_missing()
        for nodeid, result in list(self.session.results.items()):
            verdicts = [
                _told(verdict, sides.get(result.case.key), measured.get(result.case.key))
                for comparison in self.comparisons
                for verdict in comparison.verdicts(result.case.key)
            ]
            self._join(nodeid, result, verdicts)

    def _add_missing(self) -> None:
        """What was to be measured, was not, and a reference has: `missing`, which is inconclusive.
        What failed is red already."""
        absent = {
            nodeid: result
            for nodeid in self.session.order
            if nodeid not in self.session.failed
            and (result := self.session.told(nodeid)) is not None
            and result.execution is None
        }
        found = []
        for comparison in self.comparisons or ():
            has = set(comparison.reference.cases)
            missing = [
                Change(result.case.key, verdict="missing", why=result.note)
                for result in absent.values()
                if result.case.key in has
            ]
            found.append(replace(comparison, changes=[*comparison.changes, *missing]))
        self.comparisons = found
        for nodeid, result in absent.items():
            if any(comparison.verdicts(result.case.key) for comparison in found):
                self.session.results.setdefault(nodeid, result)  # where verdicts are joined to it

    @property
    def _judged(self) -> int:
        """Metrics that were compared, with whatever verdict."""
        changes = (change for found in self.comparisons or () for change in found.changes)
        return sum(change.verdict in JUDGED for change in changes)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A comparison that compares nothing decides nothing."""
        green = session.exitstatus == pytest.ExitCode.OK
        if green and self.session.options.fail_inconclusive and not self._judged:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self.notes.append(
                "--against: nothing was compared, which --fail-inconclusive makes red: measure "
                "cases that the reference has, or leave --against out"
            )

    def _again(self, sides: Mapping[str, Side]) -> dict[str, Record]:
        """The cases that seem to be slower, measured once more in a fresh process, by key."""
        slower = {
            change.case
            for comparison in self.comparisons or ()
            for change in regressions(comparison.changes)
            if change.timed and change.evidence is not None
        }
        here, there = {}, set()
        for nodeid, result in self.session.results.items():
            if result.case.key in slower:
                if sides[result.case.key].record.host == origin.host():
                    here[nodeid] = result
                else:
                    there.add(result.case.key)
        if there:
            self.notes.append(f"not measured again, as they ran elsewhere: {', '.join(there)}")
        if not here:
            return {}
        self._say(f"measuring again, in a fresh process: {', '.join(here)}")
        seconds = sum(result.seconds for result in here.values())
        measured, trouble = again.measure(self.config, list(here), seconds)
        if trouble:
            self.notes.append(f"{', '.join(here)} not measured again: {trouble}")
        return {case: record for case, record in measured.items() if case in slower}

    def _say(self, line: str) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    def _join(self, nodeid: str, result: Result, verdicts: list[Verdict]) -> None:
        """To the verdicts of a case; one that is red fails its test a second time."""
        self.session.results[nodeid] = replace(result, verdicts=[*result.verdicts, *verdicts])
        failed = [verdict.text for verdict in verdicts if verdict.outcome == "fail"]
        if self.session.options.fail_inconclusive:
            undecided = [v.text for v in verdicts if v.outcome == "inconclusive"]
            failed += [f"inconclusive: {text}" for text in undecided]
        if failed:
            path, _, name = nodeid.partition("::")
            report = pytest.TestReport(
                nodeid=nodeid,
                location=(path, None, f"{name} against earlier runs"),
                keywords={},
                outcome="failed",
                longrepr="\n".join(failed),
                when="call",
            )
            self.config.hook.pytest_runtest_logreport(report=report)

    def write(self, reporter: pytest.TerminalReporter) -> None:
        if self.comparisons is None:
            reporter.write_line("--against: nothing was compared, as the run ended early", red=True)
            return
        results = self.session.results.values()
        cases = {result.case.key for result in results if result.execution is not None}
        for comparison in self.comparisons:
            reporter.write_line(f"{comparison.gate}: {counts(comparison.changes)}")
            absent = [case for case in comparison.reference.cases if case not in cases]
            if absent:
                reporter.write_line(
                    f"  {len(absent)} of its cases were not measured in this run", light=True
                )
        for line in self.notes:
            reporter.write_line(line)


def _told(verdict: Verdict, side: Side | None, measured: Record | None) -> Verdict:
    """What was measured twice says so."""
    name = verdict.metric
    if side is None or measured is None:
        return verdict
    first, second = side.record.metrics.get(name), measured.metrics.get(name)
    if name not in TIMED or first is None or second is None:
        return verdict
    both = f"{number(first.value)} at first, {number(second.value)} in a fresh process"
    return replace(verdict, text=f"{verdict.text}: {both}")
