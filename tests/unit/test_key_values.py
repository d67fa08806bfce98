"""The key-value cache, beside the one that transformers fills."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bitgate.quantize import shapes_of
from bitgate.quantize.key_values import CacheShape, cache_bytes, caches
from bitgate.sources.architecture import config_from

TINY = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 96}
MODELS = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt2": {"bos_token_id": 0, "eos_token_id": 0},
    "falcon": {},
    "gpt_bigcode": {"bos_token_id": 0, "eos_token_id": 0},
    "mistral": {**GROUPED, "sliding_window": 8},
    "gemma3_text": {**GROUPED, "head_dim": 32, "sliding_window": 8},
    "cohere2": {**GROUPED, "sliding_window": 8, "eos_token_id": 0, "pad_token_id": 0},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("context", [5, 21])
def test_as_many_bytes_as_transformers_keeps(kind, context):
    config = config_from({"model_type": kind, **TINY, **MODELS[kind]})
    module = AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache(config=config)
    tokens = torch.arange(2 * context).reshape(2, context) % 60
    with torch.inference_mode():
        module(tokens[:, :-1], past_key_values=cache, use_cache=True)
        module(tokens[:, -1:], past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    found = shapes_of(module).cache
    assert found is not None
    assert cache_bytes(found, context, 2, 4) == kept > 0


def test_by_hand():
    """Llama-2-7B: 32 layers of 32 heads of 128, a key and a value each; half a MiB a token in 16
    bits. Llama-3.2-1B: 16 layers, 8 heads of 64."""
    llama = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32}
    found = caches(config_from({**llama, "num_attention_heads": 32}))
    assert found == (CacheShape(2 * 32 * 32 * 128, None),)
    assert cache_bytes(found, 4096, 1, 2) == 2**31
    grouped = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
    found = caches(config_from({**llama, **grouped, "num_hidden_layers": 16}))
    assert found == (CacheShape(2 * 16 * 8 * 64, None),)


@pytest.mark.parametrize("kind", ["mamba", "deepseek_v3", "jamba", "gemma3n_text", "gemma4_text"])
def test_what_keeps_something_else_is_not_guessed(kind):
    assert caches(config_from({"model_type": kind})) is None


def test_a_classifier_keeps_nothing(llama):
    from transformers import LlamaForSequenceClassification

    base = llama()
    assert shapes_of(base).cache is not None
    assert shapes_of(LlamaForSequenceClassification(base.config)).cache == ()
