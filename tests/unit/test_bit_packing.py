"""Codes of 1 to 8 bits side by side: a stream of bits without gaps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgate.quantize.bit_packing import pack, packed_size, unpack


@st.composite
def coded(draw):
    bits = draw(st.integers(1, 8))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=100))


@settings(deadline=None, max_examples=300)
@given(coded())
def test_the_stream_is_one_number(case):
    """Read as one little-endian number, code i stands at bit i * bits; and it comes back."""
    bits, codes = case
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert packed.dtype == torch.uint8
    number = int.from_bytes(bytes(packed.tolist()), "little")
    assert number == sum(code << (i * bits) for i, code in enumerate(codes))
    assert len(packed) == packed_size(len(codes), bits)
    assert 0 <= 8 * len(packed) - bits * len(codes) < 8
    assert unpack(packed, bits, len(codes)).tolist() == codes


def test_by_hand():
    # 3 bits: 001 010 011 100 101 from the lowest bit on: 11|010|001 = 0xd1, 0101 100 0 = 0x58
    assert pack(torch.tensor([1, 2, 3, 4, 5]), 3).tolist() == [0b11010001, 0b01011000]


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_matrix_is_packed_row_by_row_and_holds_nothing_else(bits):
    codes = torch.randint(0, 2**bits, (37, 53), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert torch.equal(packed, pack(codes.reshape(-1), bits))
    assert packed.untyped_storage().nbytes() == packed_size(37 * 53, bits)
    assert torch.equal(unpack(packed, bits, 37 * 53).reshape(37, 53).long(), codes)
