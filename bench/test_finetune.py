"""What does fine-tuning gain, and how much of it is left once the tuned model is deployed?"""

import pytest

from bitgate.measure.gains import kept_gains


@pytest.mark.workload("finetune")
def test_finetune(tuned, quantized, text, benchmark, gate):
    """Held-out text of the domain, before and after tuning, merging and quantizing."""
    gate.decide(benchmark, kept_gains(tuned, quantized, text))
