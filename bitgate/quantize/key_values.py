"""How much attention keeps of the tokens it has seen: the key-value cache.

Each layer keeps a key and a value of `num_key_value_heads` heads (grouped-query attention has fewer
than there are queries: Ainslie et al., "GQA", 2023), of each token or, where it slides, of the last
ones only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: kinds of layers, as transformers calls them, and whether they keep all tokens
KINDS = {"full_attention": True, "sliding_attention": False, "chunked_attention": False}
#: what a configuration has whose layers keep something else
OTHERWISE = (
    "kv_lora_rank",
    "ssm_state_size",
    "state_size",
    "mamba_d_state",
    "rwkv_version",
    "num_kv_shared_layers",  # which read what another layer keeps, as in Gemma 3n
    "is_heterogeneous",  # heads differ from layer to layer, as in Gemma 4
)


class CacheShape(NamedTuple):
    """Layers that keep alike."""

    numbers: int  #: of each token, over all these layers
    window: int | None  #: the last so many tokens; None for all


def caches(config: PreTrainedConfig) -> tuple[CacheShape, ...] | None:
    """What the layers of a causal language model keep; None where its configuration is silent."""
    text: Any = config.get_text_config(decoder=True)
    if any(getattr(text, key, None) for key in OTHERWISE):
        return None
    layers = getattr(text, "num_hidden_layers", None)
    heads = getattr(text, "num_attention_heads", None)
    hidden = getattr(text, "hidden_size", None)
    if not isinstance(layers, int) or not isinstance(heads, int) or hidden is None:
        return None
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        keeping = 1
    else:
        keeping = next(
            (n for key in KEEPING if isinstance(n := getattr(text, key, None), int)), heads
        )
    each = 2 * keeping * (getattr(text, "head_dim", None) or hidden // heads)
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * layers
    if not set(kinds) <= KINDS.keys() or (window is None and not all(KINDS[k] for k in kinds)):
        return None
    whole = sum(KINDS[kind] for kind in kinds)
    found = (CacheShape(whole * each, None), CacheShape((len(kinds) - whole) * each, window))
    return tuple(shape for shape in found if shape.numbers)


#: what configurations call the heads that are kept
KEEPING = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def cache_bytes(shapes: Iterable[CacheShape], context: int, batch: int, element: int) -> int:
    """Bytes for `batch` sequences of `context` tokens, prompt and output together; a window is the
    token at hand and what is kept of those before it, as in transformers' DynamicCache."""
    return sum(
        numbers * (context if window is None else min(context, window - 1)) * batch * element
        for numbers, window in shapes
    )
