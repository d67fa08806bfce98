"""Headers of safetensors files, beside those that safetensors writes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bitgate.quantize.file_sizes import FLOATS, TYPES, Stored, escaped, laid_out

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}

NAMES = st.text('abc.019_é"\\\n', min_size=1, max_size=9)
STORED = st.builds(
    Stored, st.sampled_from(sorted(TYPES)), st.lists(st.integers(1, 40), max_size=3).map(tuple)
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, STORED, max_size=12), st.dictionaries(NAMES, NAMES, max_size=4))
def test_as_safetensors_writes_it(tensors, metadata):
    metadata |= {"always": "there"}
    made = {name: torch.zeros(one.shape, dtype=DTYPES[one.dtype]) for name, one in tensors.items()}
    written = save(made, metadata)
    size = sum(tensor.nbytes for tensor in made.values())
    assert sum(one.bytes for one in tensors.values()) == size
    header = len(written) - size
    assert laid_out(tensors, metadata) == (header, size)


def test_every_type_is_known_here():
    assert TYPES.keys() == DTYPES.keys()
    assert all(TYPES[name] == dtype.itemsize for name, dtype in DTYPES.items())
    assert all(DTYPES[kind] == getattr(torch, name) for name, kind in FLOATS.items())


@pytest.mark.parametrize(("text", "length"), [("a", 1), ('"', 2), ("\n", 2), ("é", 2), ("\x01", 6)])
def test_escaped(text, length):
    assert escaped(text) == length
