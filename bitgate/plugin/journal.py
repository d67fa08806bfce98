"""Nothing that was measured is lost: the journal of a run, and `--resume`."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

import pytest

from bitgate.history.journal import (
    Contents,
    Header,
    Journal,
    JournalError,
    backup_of,
    damaged,
    difference,
    digest,
    fingerprints,
    gate_fingerprints,
    is_in_use,
    not_planned_any_more,
    read,
)
from bitgate.plugin import benchmark, distribution, options, parcel
from bitgate.plugin.session import SESSION, Session

FILE = "unfinished.jsonl"  #: in pytest-benchmark's storage
FINISHED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


def install(config: pytest.Config) -> None:
    """Keep a journal, unless this is a worker or nothing will be measured."""
    if distribution.is_worker(config):
        return
    if config.getoption("collectonly") or config.getoption("setuponly"):
        return
    keeper = Keeper(config, config.stash[SESSION])
    config.stash[KEEPER] = keeper
    config.pluginmanager.register(keeper, "bitgate-journal")


def keeper_of(config: pytest.Config) -> Keeper | None:
    """Who keeps the journal of this process, if anyone does."""
    return config.stash.get(KEEPER, None)


def deselect(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what the run that is resumed had finished."""
    keeper = keeper_of(config)
    finished = distribution.told(config, "finished") if keeper is None else keeper.resumed
    if not finished:
        return
    known = set(finished)
    gone = [item for item in items if item.nodeid in known]
    items[:] = [item for item in items if item.nodeid not in known]
    config.hook.pytest_deselected(items=gone)


class Keeper:
    """Keeps the journal, in the controller or in the only process there is."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session
        self.journal: Journal | None = None
        #: False once it cannot be written
        self.works = True
        #: what an earlier process had finished, by node id
        self.resumed: dict[str, dict[str, Any]] = {}
        #: node ids that are to be run in this part of the run; None until they are collected
        self.planned: set[str] | None = None
        #: what the run that is resumed had planned, in order
        self.planned_then: Sequence[str] = ()
        self.ended: set[str] = set()
        self.failed: set[str] = set()
        self._entered = False
        self._begun: Header | None = None
        self.first_lines: list[str] = []
        self.last_lines: list[str] = []

    @property
    def path(self) -> Path:
        """Beside the runs that pytest-benchmark saves."""
        folder = benchmark.storage_path(self.config)
        return (folder.parent if folder else self.config.rootpath / ".benchmarks") / FILE

    @property
    def name(self) -> str:
        """The path as it is called in messages: short where it lies in the project."""
        return relpath(self.path, self.config.rootpath)

    # --- before anything is measured ---

    def start(self) -> None:
        """Before any worker starts: what an earlier run has left."""
        exists = self.path.is_file()
        if self.config.getoption("resume"):
            if exists:
                try:
                    self._resume()
                except JournalError as error:
                    raise pytest.UsageError(f"--resume: {error}") from None
            else:
                self.first_lines.append(f"no {self.name} to resume: everything is measured")
        elif exists and not is_in_use(self.path):
            self.first_lines.append(
                f"{self.name} is what a killed run had measured: --resume would continue it; it "
                f"moves to {backup_of(self.path).name} as soon as anything is measured now"
            )

    def _resume(self) -> None:
        self.journal = Journal(self.path)
        try:
            contents = read(self.path)
            if contents.header is None:
                self.first_lines.append(f"nothing in {self.name} is whole: everything is measured")
                return
            self._refuse_another(contents.header)
            self._refuse_broken(contents)
            self.journal.go_on(contents)
        except JournalError:
            self.journal.close()
            raise
        self.resumed, self._begun = contents.parcels, contents.header
        self.planned_then = contents.header.order
        self.first_lines.append(
            f"resuming {self.name}: {len(self.resumed)} tests are finished, the rest is run"
        )
        if contents.cut:
            self.first_lines.append("its last line was cut, so that case is measured again")

    def _refuse_another(self, header: Header) -> None:
        differences = difference(header, self._header())
        if differences:
            raise JournalError(
                "\n  ".join([f"{self.name} is of another run:", *differences])
                + "\nstart pytest as it was started then, or leave --resume out to measure "
                f"everything (what was measured then moves to {backup_of(self.path).name})"
            )

    def _refuse_broken(self, contents: Contents) -> None:
        """Now, not when everything else is measured too."""
        for nodeid, finished in contents.parcels.items():
            try:
                if not isinstance(finished["failed"], bool):
                    raise TypeError("failed is neither true nor false")
                parcel.check(self.session, finished)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise damaged(self.path, contents.lines[nodeid], error) from None

    def _header(self) -> Header:
        from bitgate.history.origin import changes, commit, versions

        wanted, described = self.session.options, commit()
        return Header(
            commit=described and described.removesuffix("+"),
            # of what is in the file of the gates, only these count
            changes=changes(but=wanted.thresholds.name),
            cadence=wanted.cadence,
            matrix=fingerprints(self.session.due.values()),
            gates=gate_fingerprints(self.session.thresholds.gates),
            execution={
                "device": wanted.device,
                "threads": _threads(self.config),
                "timing": _timing(self.config),
                "launches": wanted.launches,
                "undecided gates": "fail" if wanted.fail_inconclusive else "warn",
            },
            versions=versions(),
            selection=_selection(self.config),
            order=list(self.session.order),
        )

    def pytest_report_header(self) -> list[str]:
        return [f"bitgate: {line}" for line in self.first_lines]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        distribution.tell(node, "finished", list(self.resumed))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not distribution.is_distributed(self.config):
            self.plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if self.planned is None:
            self.plan(ids)

    def plan(self, nodeids: Sequence[str]) -> None:
        """Before anything is measured: these tests are to be run, after those that were.

        Raises:
            pytest.UsageError: if tests are missing that the run that is resumed had planned, or
                another run writes the journal.
        """
        left = [nodeid for nodeid in self.planned_then if nodeid not in self.resumed]
        gone = not_planned_any_more(left, nodeids)
        if gone:
            raise pytest.UsageError(
                f"--resume: {self.name} is of another run:\n  {gone}\nleave out options that "
                "choose tests (--lf, --sw, --ignore), or leave --resume out to measure everything"
            )
        order = dict.fromkeys([*self.planned_then, *nodeids])
        self.session.order = {nodeid: number for number, nodeid in enumerate(order)}
        self.planned = set(nodeids)
        if any(self.session.case_of(nodeid) is not None for nodeid in nodeids):
            parcel.prepare()
            self._claim()

    def _claim(self) -> None:
        """The journal is this run's, although nothing is in it before anything is finished."""
        try:
            if self.journal is None:
                self.journal = Journal(self.path)
        except JournalError as error:
            raise pytest.UsageError(str(error)) from None
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Measuring goes on, it has cost enough already."""
        self.works = False
        self.last_lines.append(f"no journal was kept from here on: {error}")

    # --- while it is measured ---

    def keep(self, report: pytest.TestReport, arrived: dict[str, Any] | None) -> None:
        """Note how a test fares; put what it measured on disk."""
        if report.failed:
            self.failed.add(report.nodeid)
        if report.when == "teardown":
            self.ended.add(report.nodeid)
        if arrived is not None and _is_finished(arrived):
            self._append({**arrived, "failed": report.nodeid in self.failed})

    def _append(self, finished: dict[str, Any]) -> None:
        if not self.works:
            return
        try:
            if self.journal is None:
                self.journal = Journal(self.path)
            if not self.journal.is_open:  # only now: a run without benchmarks leaves no journal
                self._begun = self._header()
                self.journal.begin(self._begun)
            self.journal.append(finished)
        except (OSError, JournalError) as error:
            self._give_up(error)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """What was finished before counts as if it had been run now."""
        done = yield
        session.testscollected += len(self.resumed)
        session.testsfailed += len(self._failed_before())
        return done

    def _failed_before(self) -> list[str]:
        return [nodeid for nodeid, finished in self.resumed.items() if finished["failed"]]

    # --- afterwards ---

    def identity(self) -> dict[str, Any]:
        """What parts of one run share, and which cases are due in all of them together."""
        header = self._begun or self._header()
        return {
            "due": list(header.matrix),
            "matrix": digest(header.matrix),
            "gates": digest(header.gates),
            "changes": header.changes,
        }

    @property
    def unfinished(self) -> set[str]:
        """What was to run and did not."""
        planned = {*self.planned_then, *(self.planned or ())}
        return planned - self.ended - self.resumed.keys()

    def enter_resumed(self) -> None:
        """Into the books, once, before they are saved."""
        if self._entered:
            return
        self._entered = True
        for nodeid, finished in self.resumed.items():
            parcel.enter(self.config, finished, here=False)
            if finished["failed"]:
                self.session.failed.setdefault(nodeid, "failed before --resume")

    def saved(self, exitstatus: int) -> None:
        """The run is on disk: the journal has done its duty, unless tests are missing."""
        if self.journal is None:
            return
        missing = self.unfinished
        if not self.journal.is_open:  # nothing was measured: what is there is of another run
            self.journal.close()
        elif exitstatus in FINISHED and self.planned is not None and not missing:
            self.journal.remove()
        else:
            self.journal.close()
            self.last_lines.append(
                f"{len(missing) or 'some'} tests did not finish: --resume runs them, what was "
                f"measured is kept in {self.name}"
            )

    def tell(self, reporter: pytest.TerminalReporter) -> None:
        """What pytest's own summary cannot know."""
        for nodeid in self._failed_before():
            reporter.write_line(f"FAILED before --resume: {nodeid}", red=True)
            result = self.session.results.get(nodeid)
            for verdict in result.verdicts if result else ():
                if verdict.outcome == "fail":
                    reporter.write_line(f"  {verdict.text}")
        for line in self.last_lines:
            reporter.write_line(line)


KEEPER = pytest.StashKey[Keeper]()


def _is_finished(arrived: dict[str, Any]) -> bool:
    """Whether it was measured: not if the budget had no room for it, nor if measuring crashed."""
    if arrived["result"] is not None:
        return arrived["result"]["record"] is not None
    return not arrived["benchmark"]["has_error"]


def _timing(config: pytest.Config) -> str:
    """Whether benchmarks run, and are timed."""
    if config.getoption("benchmark_skip", False):
        return "skipped"
    return "off" if benchmark.is_disabled(config) else "on"


def _threads(config: pytest.Config) -> int | str:
    """Threads of each worker; by a rule, where other hosts have cores of their own."""
    hosts = distribution.workers_by_host(config)
    if hosts.keys() == {None} or config.getoption("threads"):
        return options.threads(config, hosts.get(None, 1))
    shares = sorted({2 * workers for workers in hosts.values()})
    return f"a host's cores / {' or '.join(map(str, shares))}"


def _selection(config: pytest.Config) -> str:
    """The arguments that choose tests, the same for `bench` and `bench/`."""
    return shlex.join([*_paths(config), *_filters(config)])


def _paths(config: pytest.Config) -> Iterator[str]:
    for argument in config.args:
        path, *rest = argument.split("::")
        short = relpath(config.invocation_params.dir / path, config.rootpath)
        yield "::".join([short, *rest])


def _filters(config: pytest.Config) -> Iterator[str]:
    for flag, name in (("-k", "keyword"), ("-m", "markexpr"), ("--deselect", "deselect")):
        value = config.getoption(name, None) or []
        for text in [value] if isinstance(value, str) else value:
            yield from (flag, text)
