"""The adapter to xdist and execnet for workers on other hosts: to ask a host, to tell its workers
where things are, to go on without it.

When that is done is in hosts.py. Held by tests/unit/test_hosts.py and test_other_hosts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitgate.plugin.distribution import name_of_host


def has_other_hosts(config: pytest.Config) -> bool:
    """Whether --tx names workers that are no processes of this host."""
    specs = config.getoption("tx", None) or []
    return not all(
        "popen" in spec.split("*")[-1].split("//") and "//via=" not in spec for spec in specs
    )


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
