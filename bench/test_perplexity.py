"""How much worse does the quantized model predict text?"""

import pytest

from bitgate.measure.perplexity import paired_scores


@pytest.mark.workload("perplexity")
def test_perplexity(text, quantized, base, workload, benchmark, gate):
    """Language-model quality on held-out text, token by token beside the base."""
    gate.decide(benchmark, paired_scores(quantized, base, text, workload.dataset.tokens))
