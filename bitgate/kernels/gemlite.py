"""HQQ weights on gemlite's Triton kernels, what hqq's `prepare_for_inference(backend="gemlite")`
makes of them.

hqq hands an unpacked layer to gemlite's `A16Wn`; so does `pack`, but the layer lives on (hqq's own
patch empties it), and a gemlite that cannot be imported is an error (hqq then keeps its slow path
and says nothing). The tests compare the two bit by bit.

At the first product of each shape gemlite tunes: it times its configurations ("fast", some twenty)
or takes the one that it has stored for this GPU. That belongs to the warm-up.

What is refused, gemlite 0.6.0.post2 would not always refuse. From its core.py, and from the pruning
of configurations in triton_kernels/: a block of inputs is a power of two, and one scale is loaded
for it; `tl.dot` wants 32 inputs; a vector kernel reads two blocks per scale, each at least one
packed int32. So other groups get the scale of a neighbour (wrong numbers), or no configuration.

Its split kernel (for 5 to 63 rows) lets up to 16 programs share the inputs. Where the groups of a
row are no multiple of that, some read scales and zeros behind the end, and multiply them by 0: NaN
if there is a NaN or an infinity. So here zeros lie behind the end, as many as can be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Affine, Grouping

if TYPE_CHECKING:
    from torch import nn

BITS = (8, 4, 2, 1)
LEAST_GROUP = 32  #: inputs that one `tl.dot` takes at least
WORD = 32  #: bits of the integers that codes are packed into
SPLITS = (
    16  #: programs that share the inputs, at most, in the stored and in all tuned configurations
)
ELEMENT = 2  #: bytes of a scale or zero
#: twelve numbers and a shape of two (int32), and a scale of all (float32), in every layer
METADATA = 12 * 4 + 2 * 4 + 4


def refuses(grouping: Grouping) -> str | None:
    """Why the kernel cannot take a layer grouped like this; None if it can."""
    size = grouping.group_size
    if grouping.bits not in BITS:
        return f"it holds codes of {', '.join(map(str, BITS))} bits only"
    if grouping.axis != 1:
        return "groups must run along the inputs (axis 1)"
    least = max(LEAST_GROUP, 2 * WORD // grouping.bits)
    if size < least or size & (size - 1):
        return f"the group size must be a power of two, {least} at {grouping.bits} bits or more"
    if grouping.in_features % size:
        return f"the group size must divide the {grouping.in_features} inputs"
    return None


def layer_class() -> type[nn.Module]:
    """The class of the modules that `pack` makes."""
    from gemlite.core import GemLiteLinear

    found: type[nn.Module] = GemLiteLinear
    return found


def pack(weight: Affine, bias: Any) -> nn.Module:
    """The module that executes `weight`, where that is.

    Everything floating is float16, activations too: the dtype that models are served in on a GPU.
    """
    import torch
    from gemlite.helper import A16Wn

    packer = A16Wn(device=weight.codes.device, dtype=torch.float16)
    grouping = weight.grouping
    layer: nn.Module = packer.from_weights(
        weight.codes, weight.scale, weight.zero, grouping.bits, grouping.group_size, bias
    )
    for name in ("scales", "zeros"):  # [groups of a row, out_features]
        values = layer.get_parameter(name).data
        padded = values.new_zeros(_rows(grouping), grouping.out_features)
        padded[: len(values)] = values
        layer.get_parameter(name).data = padded[: len(values)]
    return layer


def _rows(grouping: Grouping) -> int:
    """Of scales and of zeros: the groups of a row, up to a multiple of what may share them."""
    return -(-grouping.in_features // grouping.group_size // SPLITS) * SPLITS


def packed_bytes(grouping: Grouping) -> int:
    """Bytes of the packed codes, of scales and zeros in 16 bits with those behind the end, and of
    what gemlite notes in a layer."""
    codes = grouping.out_features * grouping.in_features * grouping.bits // 8
    return codes + 2 * ELEMENT * _rows(grouping) * grouping.out_features + METADATA
