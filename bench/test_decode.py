"""How much faster does the quantized model generate?"""

import pytest


@pytest.mark.workload("decode")
def test_decode(speed, benchmark, gate):
    """One token after another, in turn with the base."""
    gate.decide(benchmark, speed)
