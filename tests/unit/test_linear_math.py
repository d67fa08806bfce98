"""The arithmetic of linear quantization, beside examples counted by hand and torch's own."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

from bitgate.quantize import linear_math as ours
from bitgate.quantize.linear_math import (
    INT32,
    Grid,
    accumulate,
    code_range,
    grid,
    largest_sum,
    middle,
    moved,
    multiplier,
    quantize_bias,
    quantize_weight,
    requantize,
)

BITS = range(2, 9)
#: torch still offers its eager quantization, and says that it will not for ever
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- by hand -------------------------------------------------------------------------------


def test_asymmetric_by_hand():
    """2 bits over [-1, 2]: steps of 1 from -1 on, so 0 is code 1; 0.5 is a tie and goes to 0."""
    made = quantize_weight(torch.tensor([[-1.0, 0.0, 0.5, 2.0]]), 4, 2, False, torch.float32)
    assert (made.grid.scale.item(), made.grid.zero.item()) == (1, 1)
    assert made.codes.tolist() == [[0, 1, 1, 3]]
    assert made.dequantize().tolist() == [[-1, 0, 0, 2]]


def test_symmetric_by_hand():
    """3 bits over [-3, 3]: -3 ... 3 are codes 1 ... 7, and code 0 is never used."""
    made = quantize_weight(torch.tensor([[-3.0, 1.2, 2.0, 0.0]]), 4, 3, True, torch.float32)
    assert (made.grid.scale.item(), made.grid.zero.item()) == (1, 4)
    assert made.codes.tolist() == [[1, 5, 6, 4]]
    assert made.dequantize().tolist() == [[-3, 1, 2, 0]]


def test_two_symmetric_bits_are_three_values():
    made = quantize_weight(torch.tensor([[-4.0, -1.9, 1.9, 2.1]]), 4, 2, True, torch.float32)
    assert made.dequantize().tolist() == [[-4, 0, 0, 4]]


def test_groups_by_hand():
    """One scale for all, one per row, one per half a row; 8 bits, symmetric: m / 127."""
    weight = torch.tensor([[127.0, 1, 254, 2], [381, 3, 508, 4]])
    for size, scales in ((8, [4]), (4, [2, 4]), (2, [1, 2, 3, 4])):
        made = quantize_weight(weight, size, 8, True, torch.float32)
        assert made.grid.scale.reshape(-1).tolist() == scales
    assert torch.equal(made.dequantize(), weight)


def test_a_group_of_one_sign_reaches_to_zero():
    """So that 0 is a code: 10 ... 15 at 4 bits has steps of 1, not of 1/3."""
    made = grid(torch.tensor(10.0), torch.tensor(15.0), 4, False, torch.float32)
    assert (made.scale.item(), made.zero.item()) == (1, 0)
    made = grid(torch.tensor(-15.0), torch.tensor(-10.0), 4, False, torch.float32)
    assert (made.scale.item(), made.zero.item()) == (1, 15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-9])  # the latter's scale is 0 in float16
def test_nothing_but_zeros(symmetric, dtype, value):
    made = quantize_weight(torch.full((2, 4), value), 4, 4, symmetric, dtype)
    assert torch.allclose(made.dequantize().float(), torch.zeros(2, 4), atol=2e-9)
    assert made.dequantize().isfinite().all()


# --- beside torch --------------------------------------------------------------------------


def torchs(weight, bits, symmetric, per_channel):
    """Scale and zero point by torch's observers; signed where symmetric."""
    half = middle(bits)
    limits = (1 - half, half - 1) if symmetric else (0, 2**bits - 1)
    kind = "symmetric" if symmetric else "affine"
    how = {
        "dtype": torch.qint8 if symmetric else torch.quint8,
        "quant_min": limits[0],
        "quant_max": limits[1],
    }
    if per_channel:
        observer = PerChannelMinMaxObserver(qscheme=getattr(torch, f"per_channel_{kind}"), **how)
    else:
        observer = MinMaxObserver(qscheme=getattr(torch, f"per_tensor_{kind}"), **how)
    observer(weight)
    return (*observer.calculate_qparams(), limits)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_grids_and_codes_are_torchs(bits, symmetric, per_channel):
    weight = weights(6, 64, seed=bits) * torch.logspace(-2, 1, 6)[:, None]
    weight[0].abs_()  # of one sign
    size = 64 if per_channel else 6 * 64
    made = quantize_weight(weight, size, bits, symmetric, torch.float32)
    scale, zero, limits = torchs(weight, bits, symmetric, per_channel)
    shift = middle(bits) if symmetric else 0
    assert torch.allclose(made.grid.scale.reshape(-1), scale, rtol=1e-6)
    assert torch.equal(made.grid.zero.reshape(-1) - shift, zero.reshape(-1).float())
    if per_channel:
        faked = torch.fake_quantize_per_channel_affine(weight, scale, zero.int(), 0, *limits)
    else:
        faked = torch.fake_quantize_per_tensor_affine(weight, scale, zero.int(), *limits)
    # torch multiplies by 1 / scale: what lies halfway may go the other way
    steps = weight / scale.reshape(-1, 1)
    clear = ((steps % 1) - 0.5).abs() > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.allclose(made.dequantize()[clear], faked[clear], rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_eight_bits_are_torchs_quantized_tensor(symmetric):
    weight = weights(6, 64)
    made = quantize_weight(weight, 64, 8, symmetric, torch.float32)
    scale, zero, _ = torchs(weight, 8, symmetric, per_channel=True)
    kind = torch.qint8 if symmetric else torch.quint8
    codes = torch.quantize_per_channel(weight, scale, zero, 0, kind).int_repr().int()
    same = codes + (128 if symmetric else 0) == made.codes
    assert same.float().mean() > 0.99


# --- what holds for any numbers ------------------------------------------------------------

finite = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None, max_examples=300)
@given(st.lists(finite, min_size=1, max_size=16), st.integers(2, 8), st.booleans())
def test_what_a_grid_promises(values, bits, symmetric):
    weight = torch.tensor([values])
    made = quantize_weight(weight, len(values), bits, symmetric, torch.float32)
    lowest, highest = code_range(bits, symmetric)
    assert lowest <= made.codes.min() <= made.codes.max() <= highest
    zero = made.grid.zero
    assert zero == zero.round()
    assert lowest <= zero <= highest
    exact = made.grid.quantize(torch.zeros(1, 1))
    assert made.grid.dequantize(exact) == 0
    # half a step; one that ends between two steps may be off by another half, as zero is rounded
    far = 0.5 if symmetric else 1
    error = (made.dequantize() - weight).abs().max()
    assert error <= far * made.grid.scale * (1 + 1e-3) + 1e-30
    assert torch.equal(made.grid.quantize(made.dequantize()), made.codes)  # nothing more is lost


def test_finer_groups_are_no_worse():
    weight = weights(8, 256, seed=3) * torch.logspace(-2, 0, 256)
    errors = [
        (quantize_weight(weight, size, 4, False, torch.float32).dequantize() - weight).norm()
        for size in (8 * 256, 256, 64, 16)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_are_of_the_scale_that_is_kept(dtype):
    """Not of the one before it was rounded to a short dtype."""
    weight = weights(16, 64)
    made = quantize_weight(weight, 64, 8, True, dtype)
    assert made.grid.scale.dtype == dtype
    error = (made.codes.float() - 128) * made.grid.scale.float() - weight
    inside = weight.abs() <= 127 * made.grid.scale.float()
    assert (error.abs()[inside] <= 0.501 * made.grid.scale.float().expand(16, 64)[inside]).all()


# --- integers ------------------------------------------------------------------------------


@pytest.mark.parametrize("per_output", [True, False])
@pytest.mark.parametrize(("x_bits", "w_bits"), [(8, 8), (8, 4), (4, 8), (2, 3)])
def test_sums_are_exact(x_bits, w_bits, per_output):
    generator = torch.Generator().manual_seed(x_bits * w_bits)
    x = torch.randint(0, 2**x_bits, (5, 301), generator=generator)
    w = torch.randint(0, 2**w_bits, (7, 301), generator=generator)
    x_zero = torch.randint(0, 2**x_bits, (), generator=generator)
    w_zero = torch.randint(0, 2**w_bits, (7 if per_output else 1,), generator=generator)
    found = accumulate(
        moved(x, x_bits), x_zero - middle(x_bits), moved(w, w_bits), w_zero - middle(w_bits)
    )
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), (x - x_zero) @ (w - w_zero[:, None]).T)
    symmetric = accumulate(moved(x, x_bits), x_zero - middle(x_bits), moved(w, w_bits), None)
    assert torch.equal(symmetric.long(), (x - x_zero) @ (w - middle(w_bits)).T)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_sum_fits_and_the_next_does_not(symmetric):
    inputs = INT32 // largest_sum(1, 8, 8, symmetric)
    assert inputs == (66_311 if symmetric else 33_025)
    assert largest_sum(inputs, 8, 8, symmetric) <= INT32 < largest_sum(inputs + 1, 8, 8, symmetric)
    x = torch.full((1, inputs), 255)  # what is in between wraps around, the sum does not
    zero = torch.tensor([0 if not symmetric else 128])
    w = torch.full((1, inputs), 255)
    found = accumulate(
        moved(x, 8), torch.tensor(-128), moved(w, 8), None if symmetric else zero - 128
    )
    assert found.item() == largest_sum(inputs, 8, 8, symmetric)


def test_a_bias_by_hand():
    scale = torch.tensor([0.5, 0.25])
    assert quantize_bias(torch.tensor([1.1, -1.0]), scale).tolist() == [2, -4]
    assert quantize_bias(torch.tensor([1e30, -1e30]), scale).tolist() == [INT32, -INT32]


@settings(deadline=None, max_examples=300)
@given(
    st.integers(-(2**32) + 1, 2**32 - 1),
    st.floats(2.0**-31, 2.0**20),
    st.integers(0, 255),
    st.integers(2, 8),
)
def test_requantizing_is_rounding_of_the_product(total, factor, zero, bits):
    """Against exact fractions: the multiplier is off by 2^-30 of itself at most."""
    zero = zero % 2**bits
    by = multiplier(torch.tensor(factor, dtype=torch.float64))
    kept = Fraction(int(by.mantissa), 2 ** int(by.shift))
    assert abs(kept - Fraction(factor)) <= Fraction(factor) / 2**29
    code = requantize(torch.tensor(total), by, torch.tensor(float(zero)), bits)
    exact = (total * kept + Fraction(1, 2)).__floor__() + zero
    assert int(code) == min(max(exact, 0), 2**bits - 1)


@pytest.mark.parametrize("factor", [2.0**40, 1e-30])
def test_multipliers_beyond_reason_saturate(factor):
    by = multiplier(torch.tensor([factor], dtype=torch.float64))
    codes = requantize(torch.tensor([-(2**32) + 1, 0, 2**32 - 1]), by, torch.tensor(100.0), 8)
    assert codes.tolist() == ([0, 100, 255] if factor > 1 else [100, 100, 100])


def test_requantizing_by_hand():
    """Halves go up, as adding half and cutting off has it."""
    by = multiplier(torch.tensor(0.25, dtype=torch.float64))
    totals = torch.tensor([-1000, -6, -5, -2, 0, 1, 2, 5, 6, 1000])
    codes = requantize(totals, by, torch.tensor(10.0), 4)
    assert codes.tolist() == [0, 9, 9, 10, 10, 10, 11, 11, 12, 15]


# --- a whole quantized product, beside torch's ---------------------------------------------


def whole(x, weight, bias, output, bits=8):
    """x [M, K] and weight [N, K] -> codes of the output, as IntegerLayer does it with inputs of
    `bits` bits."""
    w = quantize_weight(weight, weight.shape[1], 8, True, torch.float32)
    low, high = x.aminmax()
    at_input = grid(low, high, bits, False, torch.float32)
    scale = at_input.scale.double() * w.grid.scale.reshape(-1).double()
    zero = at_input.zero - middle(bits)
    total = accumulate(moved(at_input.quantize(x), bits), zero, moved(w.codes, 8), None).long()
    total = total + quantize_bias(bias, scale)
    by = multiplier(scale / output.scale.double())
    return requantize(total, by, output.zero, 8), at_input, w


def test_a_quantized_product_is_torchs():
    """torch.ops.quantized.linear (FBGEMM, oneDNN): same integers in, same integers out but for one
    step where a product lies between two. Inputs of 7 bits, torch's `reduce_range`: where a CPU has
    no VNNI, torch adds pairs of products in 16 bits, which overflow with 8."""
    x, weight, bias = weights(32, 48, seed=1), weights(20, 48, seed=2), weights(20, seed=3)
    y = x @ weight.T + bias
    output = grid(*y.aminmax(), 8, False, torch.float32)
    codes, at_input, w = whole(x, weight, bias, output, bits=7)

    quantized_x = torch.quantize_per_tensor(
        x, at_input.scale.item(), int(at_input.zero), torch.quint8
    )
    quantized_w = torch.quantize_per_channel(
        weight, w.grid.scale.reshape(-1).double(), torch.zeros(20).long(), 0, torch.qint8
    )
    packed = torch.ops.quantized.linear_prepack(quantized_w, bias)
    theirs = torch.ops.quantized.linear(
        quantized_x, packed, output.scale.item(), int(output.zero)
    ).int_repr()
    off = (codes.int() - theirs.int()).abs()
    assert off.max() <= 1
    assert (off == 0).float().mean() > 0.99
    # and both are the product itself, to within the steps of inputs and output
    assert (output.dequantize(codes) - y).abs().max() < 4 * output.scale


def test_grids_broadcast():
    made = Grid(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]]), 4, False)
    assert made.quantize(torch.tensor([[3.0, 4], [-2, 4]])).tolist() == [[3, 4], [0, 3]]


def test_the_module_is_readable_without_torch():
    """It is imported during collection."""
    assert "torch" not in vars(ours)
