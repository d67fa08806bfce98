"""Workers on other hosts, `--tx ssh=...`: asked before they measure, and missed when they are gone.

Hosts of one run measure the same checkout with the same packages. Each either has a checkout of its
own (`//chdir=`) or gets a copy of the controller's (`--rsyncdir`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

import pytest

from bitgate.history import origin
from bitgate.plugin import distribution, other_hosts


def watch(config: pytest.Config) -> None:
    """As a worker, take over what the controller knows; as a controller of other hosts, look after
    them. Local workers need neither."""
    if distribution.is_worker(config):
        origin.copied = distribution.told(config, "commit")
    elif distribution.is_distributed(config) and other_hosts.has_other_hosts(config):
        config.pluginmanager.register(Hosts(config), "bitgate-hosts")


class Hosts:
    """Kept by the controller of a run that other hosts take part in."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        #: folders that xdist copies to every host
        self.copied: Sequence[Path] = ()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionstart(self) -> Iterator[None]:
        try:
            return (yield)
        except Exception as error:
            usage = str(error) if isinstance(error, pytest.UsageError) else None
            why = usage or other_hosts.why_no_host(self.config, error)
            if why is None:
                raise
            other_hosts.leave_hosts(self.config)
            raise pytest.UsageError(why) from None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self) -> None:
        self.copied = other_hosts.send_only_what_was_asked_for(self.config)
        other_hosts.keep_to_living_hosts(self.config, self._say)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_newgateway(self, gateway: Any) -> None:
        """Compare, before anything is copied there or started."""
        name = distribution.name_of_host(gateway.spec)
        if name is None:
            return
        question = {
            "checkout": "." if self.copied else _place_there(self.config),
            "folders": [folder.name for folder in self.copied],
        }
        there = other_hosts.ask(gateway, origin, question)
        for folder in self.copied:
            # copying deletes what is not sent, such as .git: never onto itself
            if there["folders"][folder.name] == origin.identity(folder):
                raise pytest.UsageError(
                    f"host {name}: --rsyncdir {folder} would be copied onto itself, as "
                    f"{there['folder']} is shared; leave --rsyncdir out and give "
                    "//chdir=<the checkout>"
                )
        found = differences(origin.origin(), there, copied=bool(self.copied))
        if found:
            raise pytest.UsageError(
                f"host {name} would not measure the same:\n"
                + "\n".join(f"  {difference}" for difference in found)
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        if self.copied and distribution.name_of_host(node.gateway.spec) is not None:
            distribution.tell(node, "commit", origin.commit())

    def _say(self, why: str) -> None:
        terminal = self.config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(f"{why}; other hosts take over", red=True)


def _place_there(config: pytest.Config) -> str:
    """Pytest's rootdir on a host that has a checkout of its own: as its arguments are meant there,
    from where pytest is started."""
    here, started = config.rootpath, config.invocation_params.dir
    related = here.is_relative_to(started) or started.is_relative_to(here)
    return relpath(here, started) if related else str(here)


def differences(here: Mapping[str, Any], there: Mapping[str, Any], copied: bool) -> list[str]:
    """What a host must be told to change, in words; `copied` says that its checkout will come
    from here."""
    found = []
    for package in sorted({*here["versions"], *there["versions"]}):
        ours, theirs = here["versions"].get(package), there["versions"].get(package)
        if ours != theirs:
            found.append(
                f"{package}: {theirs or 'not installed'} on {there['host']}, "
                f"{ours or 'not installed'} here ({here['host']})"
            )
    if copied:
        return found
    if here["commit"] != there["commit"]:
        theirs = f"commit {there['commit']}" if there["commit"] else "no git checkout"
        ours = f"commit {here['commit']}" if here["commit"] else "no git checkout"
        found.append(f"{there['folder']}: {theirs} on {there['host']}, {ours} here")
        if not there["commit"]:
            found.append("give the checkout of that host with //chdir=, or copy yours: --rsyncdir")
    elif here["changes"] != there["changes"]:
        found.append(
            f"{there['folder']}: its uncommitted changes are not the same as here; commit them, "
            "or copy your checkout: --rsyncdir"
        )
    return found
