"""How much energy do quantizing and evaluating take, and what does that emit?"""

import pytest


@pytest.mark.workload("energy")
def test_energy(energy, benchmark, gate):
    """The same inputs for the quantized model and for the base; beside each figure its source."""
    gate.decide(benchmark, energy)
