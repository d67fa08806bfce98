"""A model that answers: what every measurement of a language model talks to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from bitgate.catalog import Execution

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    ) -> None:
        self.module = module
        self.execution = execution
        self.packed_layers = packed_layers
        self.expected_layers = expected_layers
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

    def decode_step(self) -> Tensor:
        import torch

        if self._next is None:
            raise RuntimeError("decode_step() comes after prefill()")
        with torch.inference_mode():
            logits = self._step(self._next[:, None], self._cache)
            self._next = logits[:, -1].argmax(-1)
        return self._next


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of every tensor that a module keeps alive, each storage counted once.

    Tensors that hide outside parameters and buffers count too, in attributes, dicts and lists
    (HQQ keeps scale and zero in a dict).
    """
    import torch

    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                visit(inner)

    for part in module.modules():
        visit(vars(part))
    return sum(storages.values())
