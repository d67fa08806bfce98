"""How much faster, or slower, does the quantized model read a prompt?"""

import pytest

from bitgate.measure.speed import paired_steps


@pytest.mark.workload("prefill")
def test_prefill(quantized, base, workload, quiet, benchmark, gate):
    """A whole prompt at once, in turn with the base."""
    gate.decide(benchmark, paired_steps(quantized, base, workload, quiet.alone))
