"""The arithmetic of linear quantization, from first principles.

A real number r is kept as a whole number, its code q, on an evenly spaced grid:

    r = scale * (q - zero)        q = round(r / scale) + zero, clamped to the codes there are

`scale` is the distance between neighbours of the grid, `zero` the code that stands for 0, itself a
whole number: so 0 (padding, the output of a ReLU) is kept exactly. With b bits the codes are

    asymmetric    0 ... 2^b - 1     the grid spans [min, max]; `zero` is wherever 0 falls
    symmetric     1 ... 2^b - 1     the grid spans [-m, m], m = max |r|; `zero` is 2^(b - 1)

Both are unsigned here. A symmetric code minus 2^(b - 1) is the signed integer of the literature,
-127 ... 127 at 8 bits; -128 is left out, so that the grid is as wide to the left as to the right.

A matrix product of such numbers needs no real ones until its end (eq. 4 to 7 of the paper):

    sum_k x_k w_k = scale_x * scale_w * sum_k (q_x - zero_x) (q_w - zero_w)

The sum is one of small integers and fits an int32. A bias joins it as an integer of the same scale,
scale_x * scale_w; and the sum becomes a code of the output, whose scale is scale_y, by multiplying
it with scale_x * scale_w / scale_y, which integers can do as well: `requantize`.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (CVPR 2018), sections 2.1 to 2.4; Krishnamoorthi, "Quantizing
deep convolutional networks for efficient inference" (2018), for one scale per channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INT32 = 2**31 - 1


# --- the grid ------------------------------------------------------------------------------


def middle(bits: int) -> int:
    """The code that stands for 0 on a symmetric grid."""
    return 1 << (bits - 1)


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """The smallest and the largest code."""
    return (1 if symmetric else 0), (1 << bits) - 1


class Grid(NamedTuple):
    """Scale and zero, one of each per group or one for all; both floating."""

    scale: Tensor
    zero: Tensor
    bits: int
    symmetric: bool

    def quantize(self, values: Tensor) -> Tensor:
        """The code nearest to each value (a tie goes to the even multiple of scale), uint8."""
        import torch

        lowest, highest = code_range(self.bits, self.symmetric)
        steps = (values.float() / self.scale.float()).round()
        return (steps + self.zero.float()).clamp(lowest, highest).to(torch.uint8)

    def dequantize(self, codes: Tensor) -> Tensor:
        """What the codes stand for, in the dtype of the scale."""
        return (codes.to(self.scale.dtype) - self.zero.to(self.scale.dtype)) * self.scale


def grid(low: Tensor, high: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> Grid:
    """The grid that spans [low, high] and 0, elementwise; its scale is kept in `dtype`.

    Where both are 0, so is everything that it is for: any scale does.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    _, highest = code_range(bits, symmetric)
    # e.g. 8 bits: m over the 127 steps on either side of 128, or max - min over 255 steps
    widest = (-low).maximum(high)
    scale = widest / (highest - middle(bits)) if symmetric else (high - low) / highest
    scale = scale.to(dtype)
    scale = scale.masked_fill(scale == 0, 1)  # also what underflows in a short dtype
    if symmetric:
        zero = scale.float() * 0 + middle(bits)
    else:
        zero = (-low / scale.float()).round().clamp(0, highest)
    return Grid(scale, zero, bits, symmetric)


# --- weights -------------------------------------------------------------------------------


class QuantizedWeight(NamedTuple):
    """A weight of `shape` in groups of `group_size` neighbours in memory: codes uint8
    [groups, group size], scale and zero [groups, 1].

    One group is the whole weight (per tensor), everything that makes one output (per channel), or a
    part of that (per group).
    """

    shape: tuple[int, ...]
    codes: Tensor
    grid: Grid

    def dequantize(self) -> Tensor:
        """The weight as it is now, in its shape."""
        return self.grid.dequantize(self.codes).reshape(self.shape)


def quantize_weight(
    weight: Tensor, group_size: int, bits: int, symmetric: bool, dtype: torch.dtype
) -> QuantizedWeight:
    """Round to the nearest point of a grid that spans each group exactly."""
    groups = weight.detach().float().reshape(-1, group_size)
    low, high = groups.aminmax(dim=1, keepdim=True)
    spanned = grid(low, high, bits, symmetric, dtype)
    return QuantizedWeight(tuple(weight.shape), spanned.quantize(groups), spanned)


# --- integers only -------------------------------------------------------------------------


def largest_sum(inputs: int, input_bits: int, weight_bits: int, symmetric: bool) -> int:
    """The largest magnitude of the sum over so many inputs: it has to fit an int32."""
    weight = middle(weight_bits) - 1 if symmetric else (1 << weight_bits) - 1
    return inputs * ((1 << input_bits) - 1) * weight


def moved(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes as signed bytes, -2^(bits - 1) ... 2^(bits - 1) - 1: what processors
    multiply. A zero that is moved alike leaves code - zero as it was."""
    import torch

    return (codes.to(torch.int16) - middle(bits)).to(torch.int8)


def accumulate(x: Tensor, x_zero: Tensor, w: Tensor, w_zero: Tensor | None) -> Tensor:
    """sum_k (x[m, k] - x_zero) (w[n, k] - w_zero[n]), int32 [M, N], for x int8 [M, K], w int8
    [N, K], `w_zero` [N] or [1]; None stands for 0, as on a symmetric grid.

    Taking the zeros out of the sum leaves the product of the codes themselves and sums of either
    (eq. 7). What is in between may wrap around; the result, which fits, is right all the same.
    """
    import torch

    zero = x_zero.to(torch.int32)
    total = torch._int_mm(x, w.T) - zero * w.sum(1, dtype=torch.int32)
    if w_zero is None:
        return total
    constant = x.shape[1] * zero - x.sum(1, dtype=torch.int32)
    return total + constant[:, None] * w_zero.to(torch.int32)


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """A bias as whole multiples of input scale x weight scale, int32 (section 2.4)."""
    import torch

    return (bias.double() / scale.double()).round().clamp(-INT32, INT32).to(torch.int32)


class Multiplier(NamedTuple):
    """A positive real number as mantissa * 2^-shift, both int64 (eq. 6)."""

    mantissa: Tensor
    shift: Tensor


def multiplier(value: Tensor) -> Multiplier:
    """To 30 bits: float64 [...]; relative error at most 2^-30 for 2^-32 < value < 2^29."""
    import torch

    _, exponent = torch.frexp(value.double())  # value = fraction * 2^exponent, 1/2 <= fraction < 1
    shift = (30 - exponent).clamp(1, 62).to(torch.int64)
    mantissa = torch.ldexp(value.double(), shift).round().clamp(max=2**30).to(torch.int64)
    return Multiplier(mantissa, shift)


def requantize(total: Tensor, by: Multiplier, zero: Tensor, bits: int) -> Tensor:
    """Codes of the output, uint8, from sums at the scale input x weight, |total| < 2^32.

    A product of 62 bits, half of the last place added, shifted right: no real number is left.
    """
    import torch

    half = torch.ones_like(by.shift) << (by.shift - 1)
    scaled = (total.to(torch.int64) * by.mantissa + half) >> by.shift
    return (scaled + zero.to(torch.int64)).clamp(0, 2**bits - 1).to(torch.uint8)
