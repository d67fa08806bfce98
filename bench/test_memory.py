"""How much memory do quantizing and evaluating take at their peak?"""

import pytest


@pytest.mark.workload("memory")
def test_memory(memory, benchmark, gate):
    """Loading, quantizing layer by layer, and one batch; each model in a process of its own."""
    gate.decide(benchmark, memory)
