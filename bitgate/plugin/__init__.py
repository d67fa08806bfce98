"""The pytest side of Bitgate: `-p bitgate.plugin`, or `pytest_plugins` in a root conftest.py.

Hooks and fixtures are thin; the work is in the module that each is imported from.
"""

from bitgate.plugin.cells import (
    pytest_collection_modifyitems,
    pytest_generate_tests,
)
from bitgate.plugin.devices import (
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
    pytest_xdist_setupnodes,
)
from bitgate.plugin.fixtures import (
    base,
    case,
    cell,
    execution,
    gate,
    quantized,
    quiet,
    shelf,
    speed,
    text,
    workload,
)
from bitgate.plugin.hooks import (
    pytest_benchmark_update_json,
    pytest_configure,
    pytest_report_header,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_runtest_setup,
    pytest_sessionfinish,
    pytest_sessionstart,
    pytest_terminal_summary,
)
from bitgate.plugin.options import pytest_addoption

__all__ = [
    "base",
    "case",
    "cell",
    "execution",
    "gate",
    "pytest_addoption",
    "pytest_benchmark_update_json",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_report_header",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_runtest_setup",
    "pytest_sessionfinish",
    "pytest_sessionstart",
    "pytest_terminal_summary",
    "pytest_xdist_auto_num_workers",
    "pytest_xdist_make_scheduler",
    "pytest_xdist_setupnodes",
    "quantized",
    "quiet",
    "shelf",
    "speed",
    "text",
    "workload",
]
