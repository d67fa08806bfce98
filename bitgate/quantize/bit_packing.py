"""Codes of 1 to 8 bits without a gap between them.

Code i takes bits [i * bits, (i + 1) * bits) of the stream, counted from each byte's lowest bit. So
eight codes fill `bits` bytes exactly, whatever the width: they pass through one 64-bit word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CODES_PER_WORD = 8


def packed_size(codes: int, bits: int) -> int:
    """Bytes of so many codes: only the last byte may have bits to spare."""
    return -(-codes * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integer codes below 2^bits, of any shape, in their order -> uint8 [packed_size]."""
    import torch
    from torch.nn.functional import pad

    flat = codes.reshape(-1).to(torch.uint8)
    eights = pad(flat, (0, -len(flat) % CODES_PER_WORD)).reshape(-1, CODES_PER_WORD)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for i in range(CODES_PER_WORD):
        words |= eights[:, i].to(torch.int64) << (i * bits)
    parts = [(words >> (8 * i) & 0xFF).to(torch.uint8) for i in range(bits)]
    return torch.stack(parts, dim=1).reshape(-1)[: packed_size(len(flat), bits)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes, uint8 [count]."""
    import torch
    from torch.nn.functional import pad

    if bits == 8:
        return packed[:count]
    rows = pad(packed, (0, -len(packed) % bits)).reshape(-1, bits)
    words = torch.zeros(len(rows), dtype=torch.int64, device=packed.device)
    for i in range(bits):
        words |= rows[:, i].to(torch.int64) << (8 * i)
    codes = torch.empty(len(rows), CODES_PER_WORD, dtype=torch.uint8, device=packed.device)
    for i in range(CODES_PER_WORD):
        codes[:, i] = words >> (i * bits) & (2**bits - 1)
    return codes.reshape(-1)[:count]
