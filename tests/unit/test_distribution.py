"""What the adapter to xdist knows of workers, in real sessions: an upgrade that moves a private
name of xdist, or changes what it means, is seen here. Those of the scheduler are in
test_cell_scheduler.py, those about workers that die in test_workers.py, those of other hosts in
test_other_hosts.py."""

from __future__ import annotations

from bitgate.plugin import distribution

pytest_plugins = ["pytester"]

COUNTS = """
import pytest
from bitgate.plugin import distribution

@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    distribution.tell(node, "finished", [str(distribution.workers_by_host(node.config))])
    distribution.tell_neighbours(node)
"""


def test_workers_are_counted_and_told_before_they_start(pytester):
    pytester.makeconftest(COUNTS)
    pytester.makepyfile(
        "from bitgate.plugin import distribution\n"
        "def test_told(request):\n"
        "    config = request.config\n"
        '    assert distribution.told(config, "finished") == ["Counter({None: 2})"]\n'
        '    assert distribution.told(config, "something else") is None\n'
        "    assert distribution.workers(config) == distribution.neighbours(config) == 2\n"
        "    assert distribution.is_worker(config) and distribution.is_distributed(config)\n"
    )
    done = pytester.runpytest_subprocess("--tx=popen", "--tx=1*popen", "--dist=load")
    done.assert_outcomes(passed=1)
    config = pytester.parseconfigure()
    assert distribution.told(config, "finished") is None
    assert distribution.workers_by_host(config) == {None: 1}
    assert distribution.workers(config) == distribution.neighbours(config) == 1
    assert not distribution.is_distributed(config)


def test_workers_by_host(pytester):
    """However xdist and ssh are told of them."""
    specs = ["2*popen", "popen//chdir=x", "2*ssh=me@gpu1//python=py", "ssh=gpu1", "popen//via=far"]
    config = pytester.parseconfig("--dist=load", *(f"--tx={spec}" for spec in specs))
    assert distribution.workers_by_host(config) == {None: 3, "gpu1": 3, "far": 1}
    assert [str(spec) for spec in distribution.local_workers(config)] == ["popen"] * 2 + [specs[1]]
