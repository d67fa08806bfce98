"""How much faster does the quantized model generate?"""

import pytest

from bitgate.measure.speed import paired_steps


@pytest.mark.workload("decode")
def test_decode(quantized, base, workload, quiet, benchmark, gate):
    """One token after another, in turn with the base."""
    gate.decide(benchmark, paired_steps(quantized, base, workload, quiet.alone))
