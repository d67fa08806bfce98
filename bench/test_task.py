"""How many items of a task does the quantized model still answer right?"""

import pytest

from bitgate.measure.tasks import paired_answers


@pytest.mark.workload("task")
def test_task(questions, quantized, base, workload, benchmark, gate):
    """Items of an lm-eval task, each beside the base's answer."""
    gate.decide(benchmark, paired_answers(quantized, base, questions, workload))
