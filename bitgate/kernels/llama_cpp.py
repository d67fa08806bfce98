"""llama.cpp on a CPU: a GGUF file that answers, through the low-level API of llama-cpp-python.

The model is mapped from its file; weights of some types are repacked when it is loaded, which
takes no more memory, as their pages of the file are not kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

from bitgate.catalog import Execution
from bitgate.kernels import KernelError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NAME = "llama.cpp"
TOKENS_AT_ONCE = 512  #: read in one pass; llama.cpp's own default
CELLS = 256  #: llama.cpp rounds the length of a key-value cache up to a multiple of this


@cache
def library() -> Any:
    """The binding, which then logs nothing."""
    # it prints whatever its logger's level lets through, from the first message on
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)
    import llama_cpp

    llama_cpp.llama_backend_init()
    return llama_cpp


class Handle:
    """Something that llama.cpp has made, freed when nothing refers to it any more; what it `needs`
    lives as long as it does."""

    def __init__(self, pointer: Any, free: Callable[[Any], None], *needs: object) -> None:
        self.pointer = pointer
        self.needs = needs
        finalize(self, free, pointer)


class LlamaServed:
    """A GGUF file in this process; `owner` is kept alive as long as it answers."""

    def __init__(
        self,
        path: Path,
        execution: Execution,
        packed_layers: int,
        expected_layers: int,
        owner: object = None,
    ) -> None:
        self.execution = execution
        self.packed_layers = packed_layers
        self.expected_layers = expected_layers
        self._llama = library()
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = self._llama.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise KernelError(f"llama.cpp cannot load {path}")
        self.model = Handle(model, self._llama.llama_model_free, owner)
        self._context: _Context | None = None
        self._next: np.ndarray | None = None

    @property
    def vocabulary(self) -> int:
        vocabulary = self._llama.llama_model_get_vocab(self.model.pointer)
        return int(self._llama.llama_vocab_n_tokens(vocabulary))

    @property
    def context(self) -> int | None:
        return int(self._llama.llama_model_n_ctx_train(self.model.pointer))

    def memory_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self._llama.llama_model_size(self.model.pointer))

    def logits(self, tokens: Tensor) -> Tensor:
        import torch

        sequences, length = tokens.shape
        context = self._context_for(1, length)
        self._next = None
        out = torch.empty(sequences, length, self.vocabulary)
        for row, one in zip(out, tokens.cpu().numpy(), strict=True):
            context.clear()
            row.copy_(torch.from_numpy(context.read(one[None], every=True)))
        return out

    def prefill(self, tokens: Tensor, room: int) -> None:
        context = self._context_for(tokens.shape[0], tokens.shape[1] + room)
        context.clear()
        self._next = context.read(tokens.cpu().numpy(), every=False).argmax(-1)

    @property
    def upcoming(self) -> Tensor:
        import torch

        if self._next is None:
            raise RuntimeError("upcoming comes after prefill()")
        return torch.from_numpy(self._next)

    def decode_step(self) -> Tensor:
        import torch

        if self._next is None or self._context is None:
            raise RuntimeError("decode_step() comes after prefill()")
        self._next = self._context.read(self._next[:, None], every=False).argmax(-1)
        return torch.from_numpy(self._next)

    def _context_for(self, sequences: int, length: int) -> _Context:
        """One context at a time: its key-value cache may be larger than the model."""
        if self._context is None or (self._context.sequences, self._context.length) != (
            sequences,
            length,
        ):
            self._context = None
            self._context = _Context(self, sequences, length)
        return self._context


class _Context:
    """A key-value cache for `sequences` sequences of up to `length` tokens, read in step."""

    def __init__(self, served: LlamaServed, sequences: int, length: int) -> None:
        self.sequences = sequences
        self.length = length
        self.vocabulary = served.vocabulary
        self._llama = llama = served._llama
        self._position = 0
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = sequences * -(-length // CELLS) * CELLS
        parameters.n_batch = sequences * length
        parameters.n_ubatch = min(TOKENS_AT_ONCE, sequences * length)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = served.execution.threads
        context = llama.llama_init_from_model(served.model.pointer, parameters)
        if not context:
            raise KernelError(f"llama.cpp has no memory for {sequences} x {length} tokens")
        self._context = Handle(context, llama.llama_free, served.model)
        batch = llama.llama_batch_init(sequences * length, 0, 1)
        self._batch = Handle(batch, llama.llama_batch_free)

    def clear(self) -> None:
        """Forget what was read."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context.pointer), False)
        self._position = 0

    def read(self, tokens: np.ndarray, every: bool) -> np.ndarray:
        """Read tokens int64 [sequences, length]; the logits, float32 [rows, vocabulary], of every
        one of them or of each sequence's last. They are gone with the next call."""
        import numpy as np

        sequences, length = tokens.shape
        count, batch = tokens.size, self._batch.pointer
        batch.n_tokens = count
        _view(batch.token, count)[:] = tokens.reshape(-1)
        _view(batch.pos, count)[:] = np.tile(
            np.arange(self._position, self._position + length), sequences
        )
        _view(batch.n_seq_id, count)[:] = 1
        wanted = _view(batch.logits, count).reshape(sequences, length)
        wanted[:] = every
        wanted[:, -1] = True
        for at in range(count):
            batch.seq_id[at][0] = at // length
        if status := self._llama.llama_decode(self._context.pointer, batch):
            raise KernelError(f"llama_decode ended with status {status}")
        self._position += length
        rows = count if every else sequences
        logits: np.ndarray = np.ctypeslib.as_array(
            self._llama.llama_get_logits(self._context.pointer), (rows, self.vocabulary)
        )
        return logits


def _view(pointer: Any, count: int) -> np.ndarray:
    """The numbers that a C pointer points to."""
    import numpy as np

    return np.ctypeslib.as_array(pointer, (count,))
