"""Ranges of activations: exact percentiles of a stream, seen by hooks that leave no trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitgate.quantize import QuantizeError
from bitgate.quantize.linear_calibration import Observer, calibrate


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), min_size=1, max_size=6
    ),
    st.sampled_from((100, 99, 95, 90, 75)),
)
def test_the_range_is_that_of_all_values_sorted(batches, percentile):
    """As if everything had been kept: at most the share that was asked for lies beyond it."""
    every = sorted(value for batch in batches for value in batch)
    observer = Observer(percentile, most=max(map(len, batches)) * len(batches))
    for batch in batches:
        observer.see(torch.tensor(batch))
    cut = (100 - percentile) * len(every) // 100
    low, high = observer.range()
    assert (low, high) == (every[cut], every[-1 - cut])
    assert sum(value > high for value in every) <= cut
    assert sum(value < low for value in every) <= cut


def test_memory_is_for_what_is_cut_off_only():
    observer = Observer(99.9, most=100_000)
    for _ in range(10):
        observer.see(torch.randn(100, 100))
    assert observer.seen == 100_000
    assert len(observer._largest) == len(observer._smallest) == 101


def test_percentiles_of_torch():
    values = torch.randn(10_050, generator=torch.Generator().manual_seed(0))
    observer = Observer(99, most=10_050)
    observer.see(values)
    low, high = observer.range()
    assert low == torch.quantile(values, 0.01, interpolation="lower")
    assert high == torch.quantile(values, 0.99, interpolation="higher")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
        self.used.weight = nn.Parameter(torch.tensor([[1.0, -1.0]]))

    def forward(self, x):
        return self.used(x)


def test_inputs_and_outputs_by_hand():
    net = Net()
    ranges = calibrate(net, ["used"], [torch.tensor([[1.0, 3], [0, -2]]), torch.ones(1, 2)], 100)
    assert ranges["used"] == ((-2, 3), (-2, 2))
    assert not net.used._forward_hooks


def test_a_layer_that_is_not_called():
    with pytest.raises(QuantizeError, match="unused: the model does not call it"):
        calibrate(Net(), ["used", "unused"], [torch.ones(1, 2)], 100)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite(bad):
    net = Net()
    with pytest.raises(QuantizeError, match="used: what it computes is not finite"):
        calibrate(net, ["used"], [torch.ones(1, 2), torch.tensor([[bad, 0]])], 100)
    assert not net.used._forward_hooks
