"""A case that needs more memory than there is: not measured, and said not to be."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

FULL = """
import pytest
from bitgate.sources import DoesNotFit

@pytest.fixture
def execution():
    raise DoesNotFit("(base 4.00 + quantized 1.00) GiB x 1.15 headroom = 5.75 GiB")
"""
LATER = """
import pytest
from bitgate.sources import DoesNotFit

@pytest.fixture
def nothing():
    class Late:
        least = 1
        def batches(self):
            raise DoesNotFit("(quantized 1.00) GiB")
            yield
    return Late()
"""


@pytest.mark.parametrize(("module", "why"), [(FULL, "base 4.00"), (LATER, "quantized 1.00")])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_it_is_skipped_with_the_arithmetic(free_project, pytester, module, why, workers):
    free_project(pytester.path)
    with (pytester.path / "conftest.py").open("a") as file:
        file.write(module)
    done = pytester.runpytest_subprocess(
        "bench/test_quantize.py", "-n", workers, "--threads=1", "-p", "no:cacheprovider"
    )
    assert done.ret == pytest.ExitCode.OK
    assert done.parseoutcomes()["skipped"] == 2
    done.stdout.fnmatch_lines([f"*inconclusive quantize*{why}*GiB*"])


def test_elsewhere_it_is_an_error(free_project, pytester):
    """Of a test that is no case nothing is known."""
    free_project(pytester.path)
    (pytester.path / "bench" / "test_plain.py").write_text(
        "from bitgate.sources import DoesNotFit\n"
        "def test_plain():\n    raise DoesNotFit('too large')\n"
    )
    done = pytester.runpytest_subprocess("bench", "-n", "0", "-k", "plain", "--threads=1")
    assert done.parseoutcomes()["failed"] == 1
