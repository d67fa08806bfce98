"""Threads are divided among the workers of a host, and a journal knows by how many."""

from __future__ import annotations

import os

import pytest

from bitgate.plugin import journal, options

pytest_plugins = ["pytester"]


@pytest.fixture
def parse(pytester, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    return lambda *arguments: pytester.parseconfig("-p", "bitgate.plugin", *arguments)


def test_a_worker_shares_its_host_with_its_neighbours_only(parse):
    config = parse()
    assert (options.read(config).threads, options.read(config).workers) == (32, 1)
    config.workerinput = {"workercount": 6, "bitgate_neighbours": 2}
    assert (options.read(config).threads, options.read(config).workers) == (16, 6)
    config.option.threads = 5
    assert options.read(config).threads == 5


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [
        ([], 32),
        (["--tx=2*popen"], 16),
        (["--tx=2*popen", "--threads=3"], 3),
        (["--tx=ssh=a", "--tx=ssh=b"], "a host's cores / 2"),
        (["--tx=2*ssh=a", "--tx=ssh=b", "--tx=popen"], "a host's cores / 2 or 4"),
        (["--tx=2*ssh=a", "--tx=ssh=b", "--threads=3"], 3),
    ],
)
def test_a_journal_goes_on_with_as_many_threads(parse, arguments, threads):
    """Or with the same share of each host's cores: the controller cannot see these."""
    distributed = ["--dist=load"] if arguments else []
    assert journal._threads(parse(*distributed, *arguments)) == threads
