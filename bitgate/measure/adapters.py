"""A trained adapter: read from peft's files, put beside layers, or merged into weights.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021): a layer's weight W
becomes W + (alpha / rank) B A.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bitgate.measure.measurement import MeasureError
from bitgate.quantize.replaced import put, share

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: what peft calls its files, and what it puts around the name of a layer
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class Update(NamedTuple):
    """What an adapter adds to the weight of a layer: scale B A."""

    a: Tensor  #: [rank, inputs]
    b: Tensor  #: [outputs, rank]
    scale: float

    def weight(self) -> Tensor:
        """[outputs, inputs], in float32."""
        return self.scale * (self.b.float() @ self.a.float())


#: the updates of an adapter by the names of the layers
Adapter = Mapping[str, Update]


def read_adapter(folder: Path, device: str, dtype: torch.dtype) -> Adapter:
    """The adapter that peft saved in `folder`."""
    from safetensors.torch import load_file

    settings = json.loads((folder / SETTINGS).read_text("utf-8"))
    scale = settings["lora_alpha"] / settings["r"]
    tensors = {k: t.to(device, dtype) for k, t in load_file(folder / WEIGHTS).items()}
    return {
        name.removeprefix(PREFIX).removesuffix(A): Update(
            tensor, tensors[name.removesuffix(A) + B], scale
        )
        for name, tensor in tensors.items()
        if name.endswith(A)
    }


def beside(module: nn.Module, adapter: Adapter) -> nn.Module:
    """A copy of `module` that shares its tensors, with the adapter beside its layers, whatever
    kernel executes them."""
    from bitgate.measure.adapted_linear import AdaptedLinear

    copy = share(module)
    for name, update in adapter.items():
        put(copy, name, AdaptedLinear(module.get_submodule(name), *update))
    return copy.eval()


def merged(module: nn.Module, weights: Iterable[tuple[str, Tensor]], adapter: Adapter) -> nn.Module:
    """A copy of the unquantized `module` whose layers have the dequantized `weights` plus what the
    adapter adds to each; all other tensors are shared.

    Raises:
        MeasureError: if the adapter is not of the same layers.
    """
    from torch import nn

    copy, left = share(module), dict(adapter)
    for name, weight in weights:
        if (update := left.pop(name, None)) is None:
            raise MeasureError(f"the adapter has nothing for the quantized layer {name}")
        layer = copy.get_submodule(name)
        there = layer.weight
        assert isinstance(there, nn.Parameter)
        total = (weight.float() + update.weight().to(weight.device)).to(there)
        layer.weight = nn.Parameter(total, requires_grad=False)
    if left:
        raise MeasureError(f"the adapter is also of layers not quantized: {', '.join(left)}")
    return copy.eval()
