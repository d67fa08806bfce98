"""Private names of pytest-benchmark, xdist and pytest are in their adapters only, where
test_benchmark_adapter.py, test_distribution.py and their neighbours hold them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bitgate
from bitgate.plugin import benchmark, distribution, other_hosts

THEIRS = {"xdist", "execnet", "pytest_benchmark", "_pytest"}
#: of each adapter: the libraries it is to, and private attributes of their objects; a new one needs
#: a test in a real session first
ADAPTERS = {
    benchmark: ({"pytest_benchmark"}, {"_benchmarksession", "_mode", "_make_stats"}),
    distribution: ({"xdist", "execnet"}, {"_max_worker_restart"}),
    other_hosts: ({"xdist", "execnet", "_pytest"}, {"_clone_node", "_active_nodes"}),
}
OF_BENCHMARK = ADAPTERS[benchmark][1]
OF_XDIST = {
    *("workerinput", "dsession", "nodemanager", "sched", "node2pending"),
    *(ADAPTERS[distribution][1] | ADAPTERS[other_hosts][1]),
}
TREES = {
    path: ast.parse(path.read_text("utf-8"))
    for path in sorted(Path(bitgate.__file__).parent.rglob("*.py"))
}
OWN = {adapter: TREES.pop(Path(adapter.__file__)) for adapter in ADAPTERS}
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)


def imports(tree):
    """Module and name of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def attributes(tree):
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def reached(tree):
    """Names of attributes, and what may be one: getattr's, say."""
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return attributes(tree) | strings


@each_adapter
def test_those_of_an_adapter_are_known(adapter):
    tree = OWN[adapter]
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    libraries, known = ADAPTERS[adapter]
    assert {name for name in attributes(tree) if re.match("_[^_]", name)} - own == known
    assert {module.split(".")[0] for module, _ in imports(tree)} & THEIRS == libraries


def test_the_adapters_keep_apart():
    """That to pytest-benchmark may ask whether this is a worker; those to xdist know nothing of
    pytest-benchmark."""
    assert not reached(OWN[benchmark]) & OF_XDIST
    for adapter in (distribution, other_hosts):
        assert not any("benchmark" in f"{module}.{name}" for module, name in imports(OWN[adapter]))
        assert not reached(OWN[adapter]) & OF_BENCHMARK


def test_no_other_module_imports_theirs():
    found = {
        (str(path), module, name)
        for path, tree in TREES.items()
        for module, name in imports(tree)
        if module.split(".")[0] in THEIRS
        and (module, name) != ("pytest_benchmark.fixture", "BenchmarkFixture")  # a type
    }
    assert not found


def test_no_other_module_reaches_into_their_objects():
    for path, tree in TREES.items():
        assert not reached(tree) & (OF_BENCHMARK | OF_XDIST), path
