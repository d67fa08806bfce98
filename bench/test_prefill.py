"""How much faster, or slower, does the quantized model read a prompt?"""

import pytest


@pytest.mark.workload("prefill")
def test_prefill(speed, benchmark, gate):
    """A whole prompt at once, in turn with the base."""
    gate.decide(benchmark, speed)
