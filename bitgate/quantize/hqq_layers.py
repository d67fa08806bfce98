"""hqq's layers as its library makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitgate.kernels.affine import Grouping

if TYPE_CHECKING:
    import torch
    from hqq.core.quantize import HQQLinear
    from torch import nn


def quantized(
    layer: nn.Module, grouping: Grouping, solver: bool, dtype: torch.dtype, device: str
) -> HQQLinear:
    """What the library makes of a layer; scale and zero are kept in `dtype`, as hqq does."""
    from hqq.core.quantize import HQQLinear

    with solver_in_blocks(device):
        made = HQQLinear(
            layer,
            library_config(grouping, solver),
            compute_dtype=dtype,
            device=device,
            del_orig=False,
        )
    made.linear_layer = None  # else it would keep the base's weight alive
    return made


def library_config(grouping: Grouping, solver: bool) -> dict[str, Any]:
    """The library's own defaults for these bits, with the solver on or off."""
    from hqq.core.quantize import BaseQuantizeConfig

    config: dict[str, Any] = BaseQuantizeConfig(
        nbits=grouping.bits, group_size=grouping.group_size, axis=grouping.axis
    )
    config["weight_quant_params"]["optimize"] = solver
    return config


@contextmanager
def solver_in_blocks(device: str, elements: int = 65536) -> Iterator[None]:
    """On a CPU, run hqq's solver over blocks of groups that fit the cache.

    Groups do not depend on each other, so only the iteration at which the solver stops early can
    differ: error equal to four digits in 0.41 to 0.49 of the time at 4, 3 and 2 bits
    (docs/decisions/0003-hqq.md).
    """
    from hqq.core.quantize import Quantizer

    whole = Quantizer.optimize_weights

    def blocked(*, tensor: Any, scale: Any, zero: Any, axis: int, **options: Any) -> Any:
        import torch

        across = 1 - axis
        width = max(1, elements // tensor.shape[axis])
        parts = [
            whole(tensor=t, scale=s, zero=z, axis=axis, **options)
            for t, s, z in zip(
                tensor.split(width, across),
                scale.split(width, across),
                zero.split(width, across),
                strict=True,
            )
        ]
        return tuple(torch.cat(part, across) for part in zip(*parts, strict=True))

    if device == "cpu":
        Quantizer.optimize_weights = staticmethod(blocked)
    try:
        yield
    finally:
        Quantizer.optimize_weights = staticmethod(whole)
