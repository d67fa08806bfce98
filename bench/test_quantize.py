"""What does quantizing cost, and what does it yield?"""

import pytest

from bitgate.measure.quantization import quantization


@pytest.mark.workload("quantize")
def test_quantize(cell, model, execution, shelf, benchmark, gate):
    """Time to quantize; bytes on disk and in memory beside those predicted from shapes alone;
    the saved file gives the same logits."""
    gate.decide(benchmark, quantization(model, cell.recipe, execution, shelf.keep))
