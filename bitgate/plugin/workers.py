"""Workers are those that the options of xdist name, and take whole cells: what xdist would make of
these options otherwise is refused before anything starts."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection, Iterator
from typing import Any

import pytest

from bitgate.plugin import distribution
from bitgate.plugin.session import SESSION

#: what a worker can be told (execnet takes any other word, and makes nothing of it)
KEYS = {
    *("popen", "ssh", "vagrant_ssh", "socket", "via", "id", "python", "chdir", "nice"),
    *("ssh_config", "dont_write_bytecode", "installvia"),
}
KINDS = ("popen", "ssh", "vagrant_ssh", "socket")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """Before xdist replaces --tx by what -n says."""
    if not distribution.is_worker(config):
        refuse(config)
    return (yield)


def refuse(config: pytest.Config) -> None:
    """A usage error, where xdist would start something else than the options say."""
    number = config.getoption("numprocesses", None)
    specs = config.getoption("tx", None) or []
    if isinstance(number, int) and number < 0:
        raise pytest.UsageError(
            f"-n {number} is no number of workers: expected 0 or more, auto or logical"
        )
    if number == 0 or not (number or specs):
        return  # none are wanted
    for spec in specs:
        count, star, _ = spec.partition("*")
        if star and count.strip().lstrip("-").isdecimal() and int(count) < 1:
            raise pytest.UsageError(
                f"--tx {spec} is no worker: expected 1 or more before *, or -n 0 for none"
            )
    named = shlex.join(word for spec in specs for word in ("--tx", spec))
    if number and specs:
        raise pytest.UsageError(
            f"-n {number} would replace {named}; leave -n out and type --dist load {named}, with "
            "--tx N*popen for N workers of this host"
        )
    dist = config.getoption("dist")
    if dist == "each":
        raise pytest.UsageError(
            "--dist each would measure each case on every worker, and a run has each case once; "
            "use --dist load"
        )
    if dist == "no" and not (number or config.getoption("distload")):
        raise pytest.UsageError(
            f"{named}: these workers are used with --dist load, which is missing; type --dist load "
            f"{named}, or -n 0 for none"
        )
    if specs:
        _refuse_malformed(config)


def _refuse_malformed(config: pytest.Config) -> None:
    """What execnet would take for something else, or end in a traceback for."""
    proxies = config.getoption("px", None) or []
    ids: list[str] = []
    for option, texts in (("--px", proxies), ("--tx", distribution.worker_specs(config))):
        for text in texts:
            words = [word.partition("=") for word in text.split("//")]
            problem = next(_problems(words, ids), None)
            if option == "--px" and "id" not in [key for key, *_ in words]:
                problem = problem or "no id= by which //via= could name it"
            if problem:
                raise pytest.UsageError(
                    f"{option} {text}: {problem}; expected popen, ssh=HOST or socket=HOST:PORT, "
                    "and after // as needed python=, chdir= or env:NAME=VALUE"
                )
            ids += [value for key, _, value in words if key == "id"]


def _problems(words: list[tuple[str, str, str]], ids: Collection[str]) -> Iterator[str]:
    """In words; `ids` are those of other workers and proxies."""
    told = {key: value for key, _, value in words}
    if len(told) < len(words):
        yield "a word is there twice"
    for key, _, value in words:
        if key not in KEYS and not key.startswith("env:"):
            yield f"{key!r} is no word for it"
        if not value and key not in ("popen", "dont_write_bytecode") and not key.startswith("env:"):
            yield f"{key}= is empty"
    if len(kinds := [kind for kind in KINDS if kind in told]) != 1:
        yield f"it is {' and '.join(kinds) or 'no kind of worker'}"
    if told.get("id") in ids:
        yield f"there is another id={told['id']}"
    if "via" in told and told["via"] not in ids:
        yield f"there is no --px id={told['via']}"
    if "nice" in told and not told["nice"].lstrip("-").isdecimal():
        yield "nice= is a number"
    if "socket" in told and not told["socket"].rpartition(":")[2].isdecimal():
        yield "socket= has no port"
    if "popen" in told and "via" not in told:
        if "chdir" in told:
            yield "a worker of this host runs where pytest was started; leave chdir= out"
        if "python" in told:
            yield from _no_command(told["python"])


def _no_command(python: str) -> Iterator[str]:
    try:
        command = shlex.split(python)[0]
    except (ValueError, IndexError):
        yield f"python={python} is no command"
        return
    if shutil.which(command) is None:
        yield f"there is no {command}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Plain `-n` places whole cells, by model and by what they cost before."""
    if config.getoption("dist") == "load" and SESSION in config.stash:
        return distribution.cell_scheduler(config, log, config.stash[SESSION].place)
    return None
