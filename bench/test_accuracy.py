"""How many texts or images does the quantized model still classify right?"""

import pytest

from bitgate.measure.classification import paired_predictions


@pytest.mark.workload("accuracy")
def test_accuracy(items, quantized, base, workload, benchmark, gate):
    """Held-out items, each beside the base's answer."""
    gate.decide(benchmark, paired_predictions(quantized, base, items, workload))
