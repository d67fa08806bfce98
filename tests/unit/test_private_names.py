"""Private names of pytest-benchmark, xdist and pytest are in the adapter only, where
test_benchmark_adapter.py and its neighbours hold them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import bitgate
from bitgate.plugin import benchmark as adapter

THEIRS = ("xdist", "execnet", "pytest_benchmark", "_pytest")
#: attributes of their objects; a new one needs a test in a real session first
PRIVATE = {
    *("_benchmarksession", "_mode", "_make_stats"),
    *("_max_worker_restart", "_clone_node", "_active_nodes"),
}
UNDOCUMENTED = {"workerinput", "dsession", "nodemanager", "sched", "node2pending", *PRIVATE}
TREES = {
    path: ast.parse(path.read_text("utf-8"))
    for path in sorted(Path(bitgate.__file__).parent.rglob("*.py"))
}
ADAPTER = TREES.pop(Path(adapter.__file__))


def imports(tree):
    """Module and name of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def attributes(tree):
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_those_of_the_adapter_are_known():
    own = {n.name for n in ast.walk(ADAPTER) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    private = {name for name in attributes(ADAPTER) if re.match("_[^_]", name)}
    assert private - own == PRIVATE


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
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not (attributes(tree) | strings) & UNDOCUMENTED, path
