"""`-m` chooses benchmarks by the kind of their workload, exactly."""

from __future__ import annotations

import pytest

from bitgate.catalog import KINDS

pytest_plugins = ["pytester"]


@pytest.fixture
def project(free_project, pytester):
    free_project(pytester.path)
    return pytester


def chosen(project, *arguments):
    done = project.runpytest_subprocess("bench", "--collect-only", "-q", *arguments)
    return {line for line in done.outlines if "::" in line}


def test_a_kind_is_a_marker(project):
    quantize, perplexity = (
        {f"bench/test_{kind}.py::test_{kind}[llama-free-hqq-w4g64{cell}]" for cell in cells}
        for kind, cells in (
            ("quantize", ("", "-dequantize")),
            ("perplexity", ("-words", "-dequantize-words")),
        )
    )
    assert chosen(project, "-m", "quantize") == quantize
    assert chosen(project, "-m", "perplexity or decode") == perplexity
    # by its name, the other benchmark of the second cell is found too
    assert len(chosen(project, "-k", "quantize")) == 3


def test_every_kind_is_explained(project):
    done = project.runpytest_subprocess("--markers")
    done.stdout.fnmatch_lines_random([f"@pytest.mark.{kind}: *" for kind in KINDS])
