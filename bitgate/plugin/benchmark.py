"""The one adapter to pytest-benchmark and xdist: every private name of them that Bitgate uses is
here.

pytest-benchmark switches itself off as soon as xdist is active. Here workers measure, each record
travels to the controller, and the controller's own session saves, compares and prints: once, by
pytest-benchmark's own code. Held by pytest-benchmark >= 5.3.1, < 6, and by
tests/unit/test_benchmark_adapter.py.
"""

from __future__ import annotations

import pstats
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture, FixtureAlreadyUsed

from bitgate.plugin.placement import Placement


class Rounds:
    """Rounds whose number is not known beforehand, as neither `benchmark(...)` nor
    `benchmark.pedantic(...)` can take them; like these, it uses the fixture up."""

    def __init__(self, benchmark: BenchmarkFixture) -> None:
        self.benchmark = benchmark

    def __enter__(self) -> Rounds:
        if self.benchmark._mode:
            self.benchmark.has_error = True
            raise FixtureAlreadyUsed(
                f"Fixture can only be used once. Previously it was used in {self.benchmark._mode} "
                "mode."
            )
        self.benchmark._mode = "gate.decide(...)"
        self.stats = self.benchmark._make_stats(iterations=1) if self.benchmark.enabled else None
        return self

    def add(self, seconds: Sequence[float]) -> None:
        if self.stats is not None:
            for duration in seconds:
                self.stats.update(duration)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or (self.stats is not None and not self.stats.stats.data):
            self.benchmark.has_error = True  # a record without rounds cannot be saved


def storage_path(config: pytest.Config) -> Path | None:
    """The folder with this machine's saved runs; None if they are kept elsewhere."""
    storage = config._benchmarksession.storage  # type: ignore[attr-defined]
    path = getattr(storage, "path", None)
    return None if path is None else Path(path) / storage.default_machine_id


def json_path(config: pytest.Config) -> Path | None:
    """The file of --benchmark-json, if it was asked for."""
    path = config._benchmarksession.json  # type: ignore[attr-defined]
    return Path(path) if path else None


def on_save(config: pytest.Config, told: Callable[[Path], None]) -> None:
    """Call `told` with each file that pytest-benchmark's storage writes a run to."""
    storage = config._benchmarksession.storage  # type: ignore[attr-defined]
    save, folder = storage.save, storage_path(config)

    def save_and_tell(output_json: Any, name: str) -> None:
        before = set(folder.glob("*.json")) if folder else set()
        save(output_json, name)
        for path in sorted(set(folder.glob("*.json")) - before) if folder else []:
            told(path)

    storage.save = save_and_tell


def refuse_without_it(config: pytest.Config) -> None:
    """Without pytest-benchmark nothing here works."""
    if not hasattr(config.option, "benchmark_only"):
        raise pytest.UsageError(
            "bitgate needs pytest-benchmark, which is switched off: leave out -p no:benchmark, or "
            "with PYTEST_DISABLE_PLUGIN_AUTOLOAD add -p pytest_benchmark.plugin"
        )


def refuse_to_draw(config: pytest.Config) -> None:
    """--benchmark-histogram without what it draws with: pytest-benchmark would crash on it, after
    everything is measured."""
    if config.getoption("benchmark_histogram", None) and find_spec("pygal") is None:
        raise pytest.UsageError(
            "--benchmark-histogram: pygal is not installed; "
            "pip install 'pytest-benchmark[histogram]'"
        )


# --- beside xdist --------------------------------------------------------------------------

#: what has to happen once, by the controller
BOOKKEEPING: dict[str, Any] = {
    "benchmark_save": None,
    "benchmark_autosave": None,
    "benchmark_json": None,
    "benchmark_compare": [],
    "benchmark_compare_fail": None,
    "benchmark_histogram": [],
}
ONLY = pytest.StashKey[bool]()


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def is_distributed(config: pytest.Config) -> bool:
    """Whether this is a worker or the controller of some: --dist alone starts none."""
    wanted = config.getoption("dist", "no") != "no" and bool(config.getoption("tx"))
    return is_worker(config) or wanted


def worker_specs(config: pytest.Config) -> list[str]:
    """What --tx says, or xdist has made of -n: a text for each worker."""
    from xdist.workermanage import parse_tx_spec_config

    return list(parse_tx_spec_config(config))


def local_workers(config: pytest.Config) -> list[Any]:
    """What each worker of this host is started from."""
    from execnet import XSpec

    return [spec for spec in map(XSpec, worker_specs(config)) if name_of_host(spec) is None]


def workers_by_host(config: pytest.Config) -> dict[str | None, int]:
    """How many processes measure on each host, as the controller or the only process knows it;
    None is this host."""
    if not is_distributed(config):
        return {None: 1}
    from execnet import XSpec

    return Counter(_host_of(XSpec(spec)) for spec in worker_specs(config))


def workers(config: pytest.Config) -> int:
    """How many processes share this run, as each of them knows it."""
    count: int = getattr(config, "workerinput", {}).get("workercount", 1)
    return count


def is_disabled(config: pytest.Config) -> bool:
    """Whether benchmarks run untimed."""
    return bool(config._benchmarksession.disabled)  # type: ignore[attr-defined]


def tell(node: Any, what: str, value: Any) -> None:
    """Tell a worker something, before it starts."""
    node.workerinput[f"bitgate_{what}"] = value


def told(config: pytest.Config, what: str) -> Any:
    """What this worker was told; None if it was not, or is none."""
    return getattr(config, "workerinput", {}).get(f"bitgate_{what}")


def tell_neighbours(node: Any) -> None:
    """Tell a worker how many there are on its host."""
    tell(node, "neighbours", workers_by_host(node.config)[_host_of(node.gateway.spec)])


def neighbours(config: pytest.Config) -> int:
    """How many workers share this one's host, itself among them."""
    return told(config, "neighbours") or 1


def before_its_session(config: pytest.Config) -> None:
    """Before pytest-benchmark reads its options: leave bookkeeping to the controller, and hide
    --benchmark-only, which it refuses beside xdist, and beside --benchmark-disable rightly."""
    if not is_distributed(config):
        if hasattr(config.option, "dist"):  # as xdist has it where no worker is to be started
            config.option.dist = "no"
        return
    if is_worker(config):
        for name, value in BOOKKEEPING.items():
            setattr(config.option, name, value)
    if config.option.benchmark_disable and not config.option.benchmark_enable:
        return
    config.stash[ONLY] = config.option.benchmark_only
    config.option.benchmark_only = False


def switch_on(config: pytest.Config) -> None:
    """After pytest-benchmark has switched itself off because of xdist."""
    if ONLY not in config.stash:
        return
    session = config._benchmarksession  # type: ignore[attr-defined]
    session.disabled = False
    session.xdist_warning = False
    session.only = config.option.benchmark_only = config.stash[ONLY]
    if session.only:
        session.skip = False


def switch_off(config: pytest.Config) -> None:
    """At the end of a worker: its records are gone to the controller, there is nothing to save.
    Where the controller was killed, nobody is told that this is the end."""
    config._benchmarksession.disabled = True  # type: ignore[attr-defined]
    for plugin in config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "WorkerInteractor":  # execnet runs a copy of its module
            plugin.sendevent = partial(_send_if_heard, plugin.sendevent)


def _send_if_heard(send: Callable[..., None], name: str, **said: object) -> None:
    with suppress(OSError):  # "cannot send (already closed?)"
        send(name, **said)


def pack(item: pytest.Item) -> dict[str, Any] | None:
    """The record of an item as JSON can hold it, or None if it has none. A worker keeps none."""
    session = item.config._benchmarksession  # type: ignore[attr-defined]
    # the newest is last, if this item has one at all
    record = session.benchmarks[-1] if session.benchmarks else None
    if is_worker(item.config):
        session.benchmarks.clear()
    if record is None or record.fullname != item.nodeid:
        return None
    return {
        **record.as_dict(include_data=False, stats=False),
        "cprofile": _pack_profile(record.cprofile_stats),
        "iterations": record.iterations,
        "has_error": record.has_error,
        "data": record.stats.data,
    }


def enter(config: pytest.Config, packed: dict[str, Any]) -> None:
    """A record that another process has measured, into this process' session."""
    config._benchmarksession.benchmarks.append(rebuild(packed))  # type: ignore[attr-defined]


def has(config: pytest.Config, fullname: str) -> bool:
    """Whether this process' session has a record of that test."""
    records = config._benchmarksession.benchmarks  # type: ignore[attr-defined]
    return any(record.fullname == fullname for record in records)


def rebuild(packed: dict[str, Any]) -> Any:
    """The record that was packed."""
    from pytest_benchmark.stats import Metadata

    fields = {**packed}
    data, iterations, options = (fields.pop(key) for key in ("data", "iterations", "options"))
    profile = _rebuild_profile(fields.pop("cprofile", None))
    record = Metadata(SimpleNamespace(cprofile_stats=profile, **fields), iterations, options)
    record.stats.data.extend(data)
    return record


def _pack_profile(stats: pstats.Stats | None) -> list[list[Any]] | None:
    """Of --benchmark-cprofile: for each function its file, line and name, then its primitive and
    all its calls, and seconds in itself and in all. Who called it pytest-benchmark does not say."""
    if stats is None:
        return None
    functions = stats.stats  # type: ignore[attr-defined]
    return [[*function, *numbers[:4]] for function, numbers in functions.items()]


def _rebuild_profile(packed: list[list[Any]] | None) -> Any:
    """As much of pstats.Stats as pytest-benchmark reads."""
    if packed is None:
        return None
    return SimpleNamespace(stats={tuple(row[:3]): (*row[3:], {}) for row in packed})


def amend(config: pytest.Config, changes: Mapping[str, dict[str, Any]]) -> None:
    """Change what the records of some tests, by node id, say of Bitgate's verdicts."""
    for record in config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
        if record.fullname in changes and "bitgate" in record.extra_info:
            record.extra_info["bitgate"].update(changes[record.fullname])


def sort(config: pytest.Config, order: dict[str, int]) -> None:
    """Records in the order in which their tests were collected, whoever finished first."""
    session = config._benchmarksession  # type: ignore[attr-defined]
    session.benchmarks.sort(key=lambda record: order.get(record.fullname, len(order)))


def cell_scheduler(
    config: pytest.Config, log: Any, place: Callable[[Sequence[str]], Placement]
) -> Any:
    """A scheduler for xdist that asks `Placement` who runs what; `place` makes one for the node
    ids that were collected."""
    from xdist.scheduler import WorkStealingScheduling
    from xdist.scheduler.worksteal import MIN_PENDING

    class CellScheduling(WorkStealingScheduling):
        """xdist's work stealing without the dealing, and so without anything to steal."""

        placement: Placement | None = None

        def __init__(self) -> None:
            super().__init__(config, log)
            self.since: dict[Any, float] = {}  #: when each worker began what it is at

        @property
        def tests_finished(self) -> bool:
            return not self.placement and super().tests_finished

        @property
        def has_pending(self) -> bool:
            return bool(self.placement) or super().has_pending

        def mark_test_complete(
            self, node: Any, item_index: int, duration: float | None = None
        ) -> None:
            self.since[node] = monotonic()
            super().mark_test_complete(node, item_index, duration)

        def remove_node(self, node: Any) -> str | None:
            if self.placement is not None:
                self.placement.forget(node)
            if self.collection is None:  # one that replaces it will collect, too
                self.node2collection.pop(node, None)
            crashed: str | None = super().remove_node(node)
            return crashed

        def check_schedule(self) -> None:
            if self.collection is None:  # a worker was lost before all had collected
                return
            if self.placement is None:
                self.placement = place(self.collection)
            self.placement.put(self.pending)
            self.pending.clear()
            for node, pending in self.node2pending.items():
                if node.shutting_down:
                    continue
                if not pending:
                    self.since[node] = monotonic()
                while len(pending) < MIN_PENDING:
                    tests = self.placement.take(node, self._busy(self.placement))
                    if not tests:  # the worker is told, as it would wait with its last test
                        node.shutdown()
                        break
                    pending.extend(tests)
                    node.send_runtest_some(tests)

        def _busy(self, placement: Placement) -> dict[Any, float]:
            now = monotonic()
            return {
                node: max(0.0, placement.cost(pending) - (now - self.since.get(node, now)))
                for node, pending in self.node2pending.items()
                if not node.shutting_down
            }

    return CellScheduling()


RESTARTS = 4  #: of the workers of each --tx, as xdist has it for -n


def bound_restarts(config: pytest.Config) -> None:
    """Of workers that die: without -n, xdist would replace them for ever."""
    session = config.pluginmanager.getplugin("dsession")
    if session._max_worker_restart is None:
        session._max_worker_restart = RESTARTS * len(session.nodemanager.specs)


# --- on other hosts, by xdist's own engine, execnet ----------------------------------------


def has_other_hosts(config: pytest.Config) -> bool:
    """Whether --tx names workers that are no processes of this host."""
    specs = config.getoption("tx", None) or []
    return not all(
        "popen" in spec.split("*")[-1].split("//") and "//via=" not in spec for spec in specs
    )


def name_of_host(spec: Any) -> str | None:
    """As --tx calls it; None if it is this one."""
    if spec.popen and not spec.via:
        return None
    return str(spec.ssh or spec.vagrant_ssh or spec.socket or spec.via)


def _host_of(spec: Any) -> str | None:
    """The same for two users of one host, whatever else ssh is told."""
    name = name_of_host(spec)
    return name and name.split()[-1].rpartition("@")[2]


def ask(gateway: Any, module: ModuleType, question: Any) -> Any:
    """Run a module's source on a host, as xdist runs its own there; it answers one question."""
    channel = gateway.remote_exec(module)
    channel.send(question)
    answer = channel.receive(timeout=60)
    channel.waitclose(timeout=60)
    return answer


def why_no_host(config: pytest.Config, error: Exception, spec: Any = None) -> str | None:
    """In words, if `error` is of a host on which no worker could be started: of `spec`, or of the
    one that xdist was at. None if it is of something else."""
    from execnet.gateway_base import RemoteError
    from execnet.gateway_bootstrap import HostNotFound

    if isinstance(error, HostNotFound):
        return f"host {error} cannot be reached: ssh has failed, and says why above"
    manager = config.pluginmanager.getplugin("dsession").nodemanager
    if manager is None or not isinstance(error, (RemoteError, EOFError, OSError)):
        return None
    if spec is None:
        started = [gateway for gateway in manager.group if hasattr(gateway, "node")]
        spec = manager.specs[min(len(started), len(manager.specs) - 1)]
    name = name_of_host(spec)
    if name is None:
        return None
    said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return (
        f"host {name} cannot be reached, or has no Python where --tx says (//python=); what ssh "
        f"says is above ({said})"
    )


def leave_hosts(config: pytest.Config) -> None:
    """End the workers that were started already."""
    manager = config.pluginmanager.getplugin("dsession").nodemanager
    if manager is not None:
        manager.group.terminate(timeout=2)


def send_only_what_was_asked_for(config: pytest.Config) -> list[Path]:
    """The folders of --rsyncdir, which is all that xdist will copy: by itself it adds pytest, which
    every host has. And let hosts be told about paths relative to where pytest was started; xdist
    takes only absolute ones, below --rsyncdir."""
    import _pytest
    from xdist import workermanage

    session = config.pluginmanager.getplugin("dsession")
    theirs = {Path(str(package.__file__)).parent.resolve() for package in (pytest, _pytest)}
    session.nodemanager.roots = [r for r in session.nodemanager.roots if r not in theirs]

    original = workermanage.make_reltoroot
    workermanage.make_reltoroot = partial(arguments_there, config.args)
    config.add_cleanup(lambda: setattr(workermanage, "make_reltoroot", original))
    return list(session.nodemanager.roots)


def arguments_there(tests: Sequence[str], roots: Sequence[Path], args: Sequence[str]) -> list[str]:
    """Arguments of the controller, as a worker on another host has to be given them. `tests` are
    those that say what to run."""
    started_at = Path.cwd()
    given: list[str] = []
    for arg in args:
        option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
        name, *inside = value.split("::")
        path = Path(name).absolute()
        if name and not (given and given[-1] in ("-k", "-m")) and path.exists():
            there = _place_there(path, roots, started_at)
            if there is not None:
                given.append(f"{option}{equals}{'::'.join([there, *inside])}")
                continue
            if arg in tests and roots:
                raise pytest.UsageError(
                    f"{arg} is in no --rsyncdir ({', '.join(map(str, roots))}): no other host "
                    "will have it"
                )
        given.append(arg)
    return given


def _place_there(path: Path, roots: Sequence[Path], started_at: Path) -> str | None:
    for root in roots:  # each is copied to the worker's folder, under its own name
        if path.resolve().is_relative_to(root):
            return str(root.name / path.resolve().relative_to(root))
    if not roots and path.is_relative_to(started_at):  # each host has a checkout of its own
        return str(path.relative_to(started_at))
    return None


def keep_to_living_hosts(config: pytest.Config, told: Callable[[str], None]) -> None:
    """A worker that died on a host which is gone, too, is replaced on another host: not at all
    where a worker still takes tests, else where one has finished its own, or as soon as one has.
    `told` is told why."""
    session = config.pluginmanager.getplugin("dsession")
    config.pluginmanager.register(_Replacements(session, told), "bitgate-replacements")


class _Replacements:
    def __init__(self, session: Any, told: Callable[[str], None]) -> None:
        self.session = session
        self.told = told
        self.replace, session._clone_node = session._clone_node, self.try_to_replace
        self.done: list[Any] = []  #: workers that have finished; their hosts can take others
        self.missing = False  #: a worker, with no host to start it on yet

    def try_to_replace(self, node: Any) -> None:
        if self._start_where(node):
            return
        others = self.session._active_nodes - {node}
        if not self.session.sched.collection_is_completed:
            self.session.shouldstop = "a host is gone before anything was measured"
        elif not self.session.sched.has_pending:
            return  # nothing is left to run
        elif all(other.shutting_down for other in others):  # none takes what is left
            while self.done:
                if self._start_where(self.done.pop()):
                    return
            self.missing = bool(others)
            if not others:
                self.session.shouldstop = "no host is left to measure on"

    def _start_where(self, node: Any) -> bool:
        """Start a worker where this one was; False if its host is gone."""
        try:
            self.replace(node)
        except Exception as error:
            usage = str(error) if isinstance(error, pytest.UsageError) else None
            why = usage or why_no_host(self.session.config, error, node.gateway.spec)
            if why is None:
                raise
            self.told(why)
            return False
        return True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if error is not None:
            return
        if self.missing and self.session.sched.has_pending:
            self.missing = False
            self.try_to_replace(node)
        else:
            self.done.append(node)
