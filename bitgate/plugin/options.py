"""Bitgate's command-line options, read once."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitgate.catalog import CADENCES, Cadence
from bitgate.plugin import distribution

#: minutes that a run may take by default; None is no limit
BUDGETS: dict[Cadence, float | None] = {"commit": 10, "nightly": 60, "weekly": None}
#: processes that each speed case is measured in by default; one is the process that runs pytest
LAUNCHES: dict[Cadence, int] = {"commit": 1, "nightly": 5, "weekly": 5}


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    #: which cells are due
    cadence: Cadence
    #: seconds that the run may take, or None
    budget: float | None
    #: the folder with matrix.toml
    catalog: Path
    #: the gates
    thresholds: Path
    #: `auto`, `cpu`, `cuda`, `cuda:1`, ...
    device: str
    #: threads of quality work on a CPU
    threads: int
    #: processes that share this run
    workers: int
    #: fresh processes that each speed case is measured in; 1 is the process that runs pytest
    launches: int
    #: whether an undecided gate is red
    fail_inconclusive: bool
    #: whether energy that no instrument has measured is judged too
    gate_modelled_energy: bool = False


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bitgate", "gates for quantized models (bitgate)")
    group.addoption(
        "--cadence",
        choices=CADENCES,
        default="commit",
        help="Which cells of the matrix are due; slower cadences include faster ones. "
        "Default: commit.",
    )
    group.addoption(
        "--budget",
        type=_minutes,
        default=None,
        metavar="MINUTES",
        help="How long the run may take, divided among cells by their recorded cost; an undecided "
        "gate samples on while its share lasts. Default: 10 for commit, 60 for nightly.",
    )
    group.addoption(
        "--thresholds",
        default=None,
        metavar="FILE",
        help="The gates. Default: thresholds.toml in pytest's rootdir.",
    )
    group.addoption(
        "--catalog",
        default=None,
        metavar="DIR",
        help="Folder of matrix.toml and of your own models.toml, datasets.toml and recipes.toml. "
        "Default: fixtures in pytest's rootdir.",
    )
    group.addoption(
        "--device",
        type=_device,
        default="auto",
        help="Where models run: cpu, cuda, cuda:1. Default: an accelerator if there is one.",
    )
    group.addoption(
        "--threads",
        type=_count,
        default=None,
        metavar="N",
        help="Threads on a CPU, where a workload does not say. Default: half of the cores, divided "
        "among the workers of a host.",
    )
    group.addoption(
        "--launches",
        type=_count,
        default=None,
        metavar="N",
        help="Measure each speed in N fresh processes, and in more while a gate is undecided; 1 is "
        "the process that runs pytest, and the interval then says how much processes differ "
        "(bitgate calibrate). Default: 1 for commit, 5 for nightly and weekly.",
    )
    group.addoption(
        "--devices",
        default=None,
        metavar="IDS",
        help="Pool of accelerators for -n, comma-separated; each worker gets one of its own. "
        "Default: CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists.",
    )
    group.addoption(
        "--share-devices",
        action="store_true",
        help="Let several workers use one device.",
    )
    group.addoption(
        "--quiet-timing",
        choices=("auto", "always", "never"),
        default="auto",
        help="Whether timed rounds wait until no other worker of this host is at work. Default: on "
        "a CPU, whose cores they share.",
    )
    group.addoption(
        "--resume",
        action="store_true",
        help="Continue a run that was killed: what it had finished is kept in "
        ".benchmarks/unfinished.jsonl, only the rest is measured, and one whole run is saved. "
        "Start it as the run was started; another commit, matrix or execution is refused.",
    )
    group.addoption(
        "--against",
        action="append",
        default=[],
        metavar="RUN",
        help="Compare each case with an earlier run, and fail where it became worse: a saved run "
        "(path or number), a git revision, latest, or accepted. What was accepted with `bitgate "
        "accept` is compared with, too. May be given several times.",
    )
    group.addoption(
        "--fail-inconclusive",
        action="store_true",
        help="Fail where a gate stays undecided when its share of the budget is spent.",
    )
    group.addoption(
        "--gate-modelled-energy",
        action="store_true",
        help="Judge energy and emissions also where they follow from constants and time, as no "
        "instrument can be read here; by default they are shown only.",
    )


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0
    if not 0 < minutes < float("inf"):
        raise ArgumentTypeError(f"expected minutes above 0, got {text!r}")
    return minutes


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a number, 1 or more, got {text!r}")
    return int(text)


def _device(text: str) -> str:
    """A device as torch calls it; `cpu:0` is the CPU."""
    if re.fullmatch(r"auto|cuda(:\d+)?", text):
        return text
    if re.fullmatch(r"cpu(:0)?", text):
        return "cpu"
    raise ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")


def read(config: pytest.Config) -> Options:
    cadence: Cadence = config.getoption("cadence")
    minutes = config.getoption("budget") or BUDGETS[cadence]
    return Options(
        cadence=cadence,
        budget=None if minutes is None else 60 * minutes,
        catalog=_path(config, "catalog", "fixtures"),
        thresholds=_path(config, "thresholds", "thresholds.toml"),
        device=config.getoption("device"),
        threads=threads(config, distribution.neighbours(config)),
        workers=distribution.workers(config),
        launches=config.getoption("launches") or LAUNCHES[cadence],
        fail_inconclusive=config.getoption("fail_inconclusive"),
        gate_modelled_energy=config.getoption("gate_modelled_energy"),
    )


def threads(config: pytest.Config, workers: int) -> int:
    """Threads of quality work, where so many processes share this host."""
    # more threads than half of the logical cores share their arithmetic units, and on a busy
    # machine they wait for each other
    return config.getoption("threads") or max(1, (os.cpu_count() or 1) // 2 // workers)


def _path(config: pytest.Config, option: str, default: str) -> Path:
    """A path given is meant from where pytest was started; a default lies in rootdir."""
    given = config.getoption(option)
    return config.invocation_params.dir / given if given else config.rootpath / default
