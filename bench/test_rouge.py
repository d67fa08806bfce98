"""How much of what the model writes changes when it is quantized?"""

import pytest

from bitgate.measure.rouge import paired_summaries


@pytest.mark.workload("rouge")
def test_rouge(prompts, quantized, base, workload, benchmark, gate):
    """Greedy summaries of documents, each beside the base's."""
    gate.decide(benchmark, paired_summaries(quantized, base, prompts, workload))
