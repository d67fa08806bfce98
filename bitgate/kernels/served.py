"""A model that answers: what every measurement of a language model talks to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from bitgate.catalog import Execution

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


#: tokens that are run through a model to tell two of them apart
PROBE = 8


class Served(Protocol):
    """Logits for scoring; prefill and decode steps for generation. Not only torch can do this."""

    execution: Execution
    #: layers that the chosen kernel executes, and how many there should be
    packed_layers: int
    expected_layers: int

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def context(self) -> int | None:
        """How many tokens a sequence may have, prompt and output together; None for any number."""
        ...

    def memory_bytes(self) -> int:
        """Bytes of everything that it keeps in memory to serve."""
        ...

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens int64 [batch, length] -> logits [batch, length, vocabulary]."""
        ...

    def prefill(self, tokens: Tensor, room: int) -> None:
        """Read prompts, int64 [batch, length], with room for that many more tokens."""
        ...

    @property
    def upcoming(self) -> Tensor:
        """The likeliest next token of each sequence, int64 [batch], which a step reads next."""
        ...

    def decode_step(self) -> Tensor:
        """Read the likeliest token of each sequence; returns those that follow, int64 [batch]."""
        ...


class TorchServed:
    """A transformers causal language model in this process."""

    def __init__(
        self,
        module: nn.Module,
        execution: Execution,
        packed_layers: int = 0,
        expected_layers: int = 0,
        layer_classes: str = "",
    ) -> None:
        """`layer_classes` are those of the layers counted, where the kernel's name does not say."""
        self.module = module
        self.execution = execution
        self.packed_layers = packed_layers
        self.expected_layers = expected_layers
        self.layer_classes = layer_classes
        self._step = self._compiled_step() if execution.compiled else self._forward
        self._cache: Any = None
        self._cache_shape: tuple[int, int] | None = None
        self._next: Tensor | None = None

    def _forward(self, tokens: Tensor, cache: Any) -> Tensor:
        out = self.module(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits
        return logits

    def _compiled_step(self) -> Any:
        import torch

        return torch.compile(self._forward, dynamic=False)

    @property
    def dtype(self) -> torch.dtype:
        """In which everything that is not quantized computes."""
        import torch

        found: torch.dtype = getattr(torch, self.execution.dtype)
        return found

    @property
    def vocabulary(self) -> int:
        return int(self.module.config.vocab_size)

    @property
    def context(self) -> int | None:
        return getattr(self.module.config, "max_position_embeddings", None)

    def memory_bytes(self) -> int:
        return tensor_bytes(self.module)

    def logits(self, tokens: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            out: Tensor = self.module(tokens.to(self.execution.device), use_cache=False).logits
        return out

    def classify(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What a classifier of texts or images takes -> logits [items, classes]."""
        import torch

        with torch.inference_mode():
            moved = {
                name: tensor.to(self.execution.device, self.dtype)
                if tensor.is_floating_point()
                else tensor.to(self.execution.device)
                for name, tensor in inputs.items()
            }
            out: Tensor = self.module(**moved).logits
        return out

    def prefill(self, tokens: Tensor, room: int) -> None:
        import torch
        from transformers import DynamicCache, StaticCache

        config = self.module.config
        shape = tokens.shape[0], tokens.shape[1] + room
        with torch.inference_mode():
            # a compiled step needs tensors whose shapes stay the same from step to step
            if self.execution.compiled:
                if self._cache_shape == shape:
                    self._cache.reset()
                else:
                    self._cache = StaticCache(config=config, max_cache_len=shape[1])
                    self._cache_shape = shape
            else:
                self._cache = DynamicCache(config=config)
            prompt = tokens.to(self.execution.device)
            self._next = self._forward(prompt, self._cache)[:, -1].argmax(-1)

    @property
    def upcoming(self) -> Tensor:
        if self._next is None:
            raise RuntimeError("upcoming comes after prefill()")
        return self._next

    def decode_step(self) -> Tensor:
        import torch

        if self._next is None:
            raise RuntimeError("decode_step() comes after prefill()")
        with torch.inference_mode():
            logits = self._step(self._next[:, None], self._cache)
            self._next = logits[:, -1].argmax(-1)
        return self._next


def probe(served: Served) -> Tensor:
    """The logits of some input of the right shape, always the same: two models that give the same
    ones are taken for the same."""
    import torch

    if isinstance(served, TorchServed) and served.module.main_input_name == "pixel_values":
        shape = _image_shape(served.module)
        pixels = torch.linspace(-1, 1, math.prod(shape)).reshape(1, *shape)
        return served.classify({"pixel_values": pixels})
    return served.logits(torch.arange(PROBE)[None])


def _image_shape(module: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model takes."""
    inside = getattr(module, "timm_model", None)  # whose configuration does not say it
    if inside is not None:
        channels, height, width = inside.pretrained_cfg["input_size"]
        patches = getattr(inside, "patch_embed", None)
        if patches is not None:  # it may have been made for images of another size
            height, width = getattr(patches, "img_size", None) or (height, width)
        return channels, height, width
    config = module.config
    size = config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return getattr(config, "num_channels", 3), height, width


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of every tensor that a module keeps alive, each storage counted once.

    Tensors that hide outside parameters and buffers count too: in attributes, dicts and lists (HQQ
    keeps scale and zero in a dict), in objects that hang on a layer or on its weight
    (bitsandbytes), and inside of a tensor that is made of others (torchao).
    """
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    storages: dict[int, int] = {}
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if id(value) in seen or isinstance(value, torch.nn.Module):  # modules come one by one
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if is_traceable_wrapper_subclass(value):
                for name in value.__tensor_flatten__()[0]:
                    visit(getattr(value, name))
            else:
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        if isinstance(value, dict):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                visit(inner)
        elif not isinstance(value, (type, FunctionType, ModuleType)):
            visit(getattr(value, "__dict__", None))

    for part in module.modules():
        visit(vars(part))
    return sum(storages.values())
