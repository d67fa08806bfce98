"""The layers of method `linear`: weights dequantized as they are used, or integers throughout."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bitgate.quantize.bit_packing import pack, unpack
from bitgate.quantize.linear_form import Form
from bitgate.quantize.linear_math import (
    Grid,
    Multiplier,
    QuantizedWeight,
    accumulate,
    middle,
    moved,
    multiplier,
    quantize_bias,
    requantize,
)


def packed(form: Form, weight: QuantizedWeight) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scale and, unless it is the same for all, zero, without a bit to spare."""
    zero = None if form.symmetric else pack(weight.grid.zero, form.bits)
    return pack(weight.codes, form.bits), weight.grid.scale.reshape(-1), zero


def unpacked(form: Form, codes: Tensor, scale: Tensor, zero: Tensor | None) -> QuantizedWeight:
    """The same weight again."""
    scale = scale[:, None]
    if zero is None:
        zeros = torch.full_like(scale, middle(form.bits))
    else:
        zeros = unpack(zero, form.bits, form.groups)[:, None].to(scale.dtype)
    grid = Grid(scale, zeros, form.bits, form.symmetric)
    groups = unpack(codes, form.bits, form.codes).reshape(form.groups, form.group_size)
    return QuantizedWeight(form.shape, groups, grid)


class _Layer(nn.Module, ABC):
    """What a model may read of the layer that another stands for: MobileNetV2 pads by its
    convolutions' strides and sizes, if `tf_padding` is set, and DeiT asks the first one's weight
    for the dtype of its images."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        if form.convolution is not None:
            self.kernel_size = form.shape[2:]
            for name, value in form.convolution.items():
                setattr(self, name, value)

    @abstractmethod
    def quantized_weight(self) -> QuantizedWeight:
        """The weight as codes on its grid."""

    @property
    def weight(self) -> Tensor:
        """What it stands for, in the dtype that everything else has."""
        return self.quantized_weight().dequantize()

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in_features] or [batch, channels, height, width]."""
        if self.form.convolution is None:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, **self.form.convolution)

    def _per_output(self, values: Tensor) -> Tensor:
        """One value per output or one for all, shaped to go with what a layer returns."""
        return values if self.form.convolution is None else values.reshape(-1, 1, 1)


class DequantizedLayer(_Layer):
    """A linear or convolution layer whose weight is kept packed; it computes in floating point."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(
        self, form: Form, codes: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__(form)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("bias", bias)

    def quantized_weight(self) -> QuantizedWeight:
        return unpacked(self.form, self.codes, self.scale, self.zero)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_weight(x, self.weight.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return str(self.form)


class IntegerLayer(_Layer):
    """A linear or convolution layer that is integers from the codes of its input to those of its
    output.

    At both ends it meets layers that are not quantized, so it takes and returns floating numbers.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None
    input: Tensor
    output: Tensor
    mantissa: Tensor
    shift: Tensor

    def __init__(
        self,
        form: Form,
        weight: QuantizedWeight,
        bias: Tensor | None,
        input_grid: Tensor,
        output_grid: Tensor,
        activation_bits: int,
    ) -> None:
        """`bias` is floating, or quantized already; a grid is its scale and zero, float32 [2]."""
        super().__init__(form)
        self.activation_bits = activation_bits
        scale = weight.grid.scale.reshape(-1)
        scale_of_sums = input_grid[0].double() * scale.double()
        by = multiplier(scale_of_sums / output_grid[0].double())
        if bias is not None and bias.is_floating_point():
            bias = quantize_bias(bias, scale_of_sums)
        zero = None if form.symmetric else moved(weight.grid.zero, form.bits).reshape(-1)
        self.register_buffer("codes", moved(weight.codes, form.bits).reshape(form.shape))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("bias", bias)
        self.register_buffer("input", input_grid)
        self.register_buffer("output", output_grid)
        self.register_buffer("mantissa", by.mantissa)
        self.register_buffer("shift", by.shift)

    def quantized_weight(self) -> QuantizedWeight:
        form, half = self.form, middle(self.form.bits)
        groups = form.groups, form.group_size
        codes = (self.codes.to(torch.int16) + half).to(torch.uint8).reshape(groups)
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero.to(self.scale.dtype)
        grid = Grid(self.scale[:, None], (zero + half)[:, None], form.bits, form.symmetric)
        return QuantizedWeight(form.shape, codes, grid)

    def accumulate(self, codes: Tensor) -> Tensor:
        """Codes of the input, uint8 -> the sums, int32, without the bias."""
        zero = self.input[1] - middle(self.activation_bits)
        x = moved(codes, self.activation_bits)
        if self.form.convolution is None:
            rows = x.reshape(-1, x.shape[-1])
            total = accumulate(rows, zero, self.codes, self.zero)
            return total.reshape(*x.shape[:-1], -1)
        # there is no integer convolution: float64 holds every integer below 2^53, so it is exact,
        # and the zeros around an image are those of the real numbers
        w = self.codes.double()
        if self.zero is not None:
            w = w - self.zero.double().reshape(-1, 1, 1, 1)
        return self._apply_weight(x.double() - zero.double(), w).to(torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        total = self.accumulate(self._grid(self.input).quantize(x)).to(torch.int64)
        if self.bias is not None:
            total = total + self._per_output(self.bias)
        by = Multiplier(self._per_output(self.mantissa), self._per_output(self.shift))
        codes = requantize(total, by, self.output[1], self.activation_bits)
        return self._grid(self.output).dequantize(codes).to(x.dtype)

    def _grid(self, end: Tensor) -> Grid:
        return Grid(end[0], end[1], self.activation_bits, symmetric=False)

    def extra_repr(self) -> str:
        return f"{self.form}, activations of {self.activation_bits} bits"
