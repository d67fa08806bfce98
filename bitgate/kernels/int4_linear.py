"""The layer of kernel `cpu-int4`, whose rules are in cpu_int4.py."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from bitgate.kernels.affine import Affine


class Int4Linear(nn.Module):
    """A linear layer whose weight is packed two codes to a byte."""

    packed: Tensor
    scale_and_zero: Tensor

    def __init__(self, weight: Affine, bias: Tensor | None) -> None:
        super().__init__()
        self.grouping = weight.grouping
        scale, zero = weight.scale.float(), weight.zero.float()
        # the kernel computes (code - 8) * scale + offset
        pairs = torch.stack([scale, (8 - zero) * scale], dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("packed", pack_codes(weight.codes))
        self.register_buffer("scale_and_zero", pairs.bfloat16())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] in any floating dtype -> [..., out_features] in the same."""
        rows = x.reshape(-1, self.grouping.in_features).bfloat16()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, self.grouping.group_size, self.scale_and_zero
        )
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.grouping.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return str(self.grouping)


def pack_codes(codes: Tensor) -> Tensor:
    """Codes uint8 [out_features, in_features], as the kernel wants them.

    The packing asks for int32 and goes down the columns of blocks of rows. So rows are given to it
    some at a time, which takes less memory, and with a few columns more than there are: where the
    rows are a power of two apart, as in many models, a column falls into one set of the cache.
    Within a block the layout is column by column, so that the additional ones lie at its end.
    """
    convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    rows, columns = codes.shape
    packed = torch.empty(rows, columns // 2, dtype=torch.uint8)
    wide = torch.zeros(min(rows, _ROWS), columns + _MORE, dtype=torch.int32)
    block = _block()
    for at in range(0, rows, _ROWS):
        some = codes[at : at + _ROWS]
        wide[: len(some), :columns] = some
        # the rows that fill no block make a smaller one
        whole = len(some) // block * block
        for first, last, size in ((0, whole, block), (whole, len(some), len(some) - whole)):
            if first < last:
                blocks = convert(wide[first:last], 1).view(-1, columns + _MORE, size // 2)
                target = packed[at + first : at + last].view(-1, columns, size // 2)
                target.copy_(blocks[:, :columns])
    return packed


@cache
def _block() -> int:
    """Rows that the packing lays out together, which depends on the processor: the first row's
    second code comes after the first code of all of them."""
    codes = torch.zeros(64, 2, dtype=torch.int32)
    codes[0, 1] = 1
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return 2 * int(packed.flatten().argmax())


_ROWS = 256  #: a multiple of every size of block
_MORE = 16  #: columns: 64 bytes, a line of the cache
