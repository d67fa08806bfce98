"""The adapter to xdist, and to execnet below it: which processes share a run, what they are told,
and who runs what.

Every private name of these two that Bitgate uses is here, or in other_hosts.py, which only runs on
other hosts need. Held by tests/unit/test_distribution.py, test_cell_scheduler.py, test_workers.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import pytest

from bitgate.plugin.placement import Placement


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


def name_of_host(spec: Any) -> str | None:
    """As --tx calls it; None if it is this one."""
    if spec.popen and not spec.via:
        return None
    return str(spec.ssh or spec.vagrant_ssh or spec.socket or spec.via)


def _host_of(spec: Any) -> str | None:
    """The same for two users of one host, whatever else ssh is told."""
    name = name_of_host(spec)
    return name and name.split()[-1].rpartition("@")[2]


def workers(config: pytest.Config) -> int:
    """How many processes share this run, as each of them knows it."""
    count: int = getattr(config, "workerinput", {}).get("workercount", 1)
    return count


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


def may_end_unheard(config: pytest.Config) -> None:
    """At the end of a worker: where the controller was killed, nobody is told that this is it."""
    for plugin in config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "WorkerInteractor":  # execnet runs a copy of its module
            plugin.sendevent = partial(_send_if_heard, plugin.sendevent)


def _send_if_heard(send: Callable[..., None], name: str, **said: object) -> None:
    with suppress(OSError):  # "cannot send (already closed?)"
        send(name, **said)


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
