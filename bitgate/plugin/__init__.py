"""The pytest side of Bitgate: `-p bitgate.plugin`, or `pytest_plugins` in a root conftest.py.

Hooks and fixtures are thin; the work is in the module that each is imported from.
"""

from bitgate.plugin.cells import (
    pytest_collection_modifyitems,
    pytest_generate_tests,
)
from bitgate.plugin.devices import (
    pytest_xdist_auto_num_workers,
    pytest_xdist_setupnodes,
)
from bitgate.plugin.fixtures import (
    base,
    case,
    cell,
    energy,
    execution,
    gate,
    items,
    kept,
    memory,
    model,
    prompts,
    quantized,
    questions,
    quiet,
    shelf,
    speed,
    text,
    tuned,
    workload,
)
from bitgate.plugin.hooks import (
    pytest_benchmark_update_json,
    pytest_configure,
    pytest_keyboard_interrupt,
    pytest_report_header,
    pytest_runtest_begin,
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_runtest_setup,
    pytest_sessionfinish,
    pytest_sessionstart,
    pytest_terminal_summary,
)
from bitgate.plugin.options import pytest_addoption
from bitgate.plugin.workers import pytest_cmdline_main, pytest_xdist_make_scheduler

__all__ = [
    "base",
    "case",
    "cell",
    "energy",
    "execution",
    "gate",
    "items",
    "kept",
    "memory",
    "model",
    "prompts",
    "pytest_addoption",
    "pytest_benchmark_update_json",
    "pytest_cmdline_main",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_keyboard_interrupt",
    "pytest_report_header",
    "pytest_runtest_begin",
    "pytest_runtest_call",
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
    "questions",
    "quiet",
    "shelf",
    "speed",
    "text",
    "tuned",
    "workload",
]
