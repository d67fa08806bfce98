"""A Llama as a GGUF file of 16-bit floats, which llama.cpp quantizes and runs.

Source of names and of the order of rotary pairs: convert_hf_to_gguf.py of llama.cpp. The file has
no vocabulary (`no_vocab`), as everything here is measured on token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgate.quantize.errors import QuantizeError
from bitgate.sources import track

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

#: what the layers of a Llama's block are called in a GGUF file
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = "model.layers."
ROPE_TABLE = "rope_freqs.weight"
#: rotary embeddings whose frequencies are fixed, so that a table of factors says all
STATIC_ROPE = ("default", "linear", "llama3")


def gguf_name(name: str) -> str | None:
    """The GGUF name of a module of a Llama, or of a parameter of one; None if it has none."""
    for top, short in TOP_NAMES.items():
        if name == top or name.startswith(f"{top}."):
            return short + name.removeprefix(top)
    number, _, inside = name.removeprefix(BLOCK).partition(".")
    if not name.startswith(BLOCK) or not number.isdecimal():
        return None
    for part, short in NAMES.items():
        if inside == part or inside.startswith(f"{part}."):
            return f"blk.{number}.{short}{inside.removeprefix(part)}"
    return None


def layer_name(short: str) -> str:
    """The layer of a Llama's block that a GGUF name such as `blk.3.attn_q` stands for."""
    _, number, part = short.split(".")
    (name,) = (name for name, found in NAMES.items() if found == part)
    return f"{BLOCK}{number}.{name}"


def export(module: nn.Module, path: Path, extra: Mapping[str, str]) -> None:
    """Write the model: matrices as float16, everything else as float32; `extra` are strings kept
    beside them.

    Raises:
        QuantizeError: if it is no Llama that llama.cpp could run.
    """
    from gguf import GGUFWriter

    config: Any = module.config
    _refuse_what_is_no_llama(module)
    writer = GGUFWriter(path, "llama")
    _describe(writer, config)
    for key, text in extra.items():
        writer.add_string(key, text)
    table = rope_factors(module)
    if table is not None:
        writer.add_tensor_info(ROPE_TABLE, table.shape, table.dtype, table.nbytes)
    tensors = list(_tensors(module))
    for name, tensor in tensors:
        kind, width = _stored(tensor)
        writer.add_tensor_info(name, tuple(tensor.shape), kind, tensor.numel() * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if table is not None:
        writer.write_tensor_data(table)
    # one tensor at a time is in memory twice
    with track("export to GGUF", len(tensors), "tensors") as task:
        for name, tensor in tensors:
            writer.write_tensor_data(_array(name, tensor, config))
            task.advance()
    writer.close()


def rope_factors(module: nn.Module) -> np.ndarray | None:
    """By what each rotary frequency is divided, float32 [head_dim / 2]; None if by nothing."""
    import torch

    config: Any = module.config
    rotary: Any = module.get_submodule("model.rotary_emb")
    used = rotary.inv_freq.float().cpu()
    exponents = torch.arange(0, 2 * len(used), 2, dtype=torch.float32) / (2 * len(used))
    plain = 1.0 / config.rope_parameters["rope_theta"] ** exponents
    factors = plain / used
    if torch.allclose(factors, torch.ones_like(factors), rtol=1e-6):
        return None
    table: np.ndarray = factors.numpy()
    return table


def _refuse_what_is_no_llama(module: nn.Module) -> None:
    config: Any = module.config
    if config.model_type != "llama":
        raise QuantizeError(f"GGUF files are made of Llamas only, not of {config.model_type}")
    unknown = [name for name, _ in module.named_parameters() if gguf_name(name) is None]
    if unknown:
        raise QuantizeError(f"a Llama has no {unknown[0]}, so that GGUF has no name for it")
    rope = config.rope_parameters["rope_type"]
    if rope not in STATIC_ROPE:
        raise QuantizeError(
            f"rotary embeddings of type {rope!r} cannot be exported to GGUF, only those of "
            f"{', '.join(STATIC_ROPE)}"
        )
    if config.hidden_act != "silu":
        raise QuantizeError(f"llama.cpp's Llamas have the activation silu, not {config.hidden_act}")


def _describe(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(1)  # mostly float16


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """By GGUF name; a tied head is the embedding, which llama.cpp takes for it."""
    for name, parameter in module.named_parameters():  # tied ones once, under their first name
        found = gguf_name(name)
        assert found is not None
        yield found, parameter.detach()


def _stored(tensor: Tensor) -> tuple[Any, int]:
    import numpy as np

    return (np.float16, 2) if tensor.dim() == 2 else (np.float32, 4)


def _array(name: str, tensor: Tensor, config: Any) -> np.ndarray:
    rows = tensor
    if ".attn_q." in name:
        rows = interleaved(tensor, config.num_attention_heads)
    elif ".attn_k." in name:
        rows = interleaved(tensor, config.num_key_value_heads)
    array: np.ndarray = rows.float().cpu().numpy().astype(_stored(tensor)[0])
    return array


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection [heads * head_dim, ...] as llama.cpp rotates them: pairs
    side by side, where transformers has the first halves and then the second halves of a head."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def in_halves(rows: Tensor, heads: int) -> Tensor:
    """What `interleaved` was given."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
