"""Which type llama.cpp gives to each tensor of a Llama, and how many bytes that takes.

Source: `llama_tensor_get_type_impl` and `tensor_type_fallback` in src/llama-quant.cpp of llama.cpp
as llama-cpp-python 0.3.36 has it, for dense models and without an importance matrix; block sizes:
`GGML_QUANT_SIZES` of the gguf package.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from bitgate.quantize.errors import QuantizeError
from bitgate.quantize.gguf_export import gguf_name, layer_name
from bitgate.quantize.shapes import ModelShapes

#: a recipe's type -> the number of its file type (llama_ftype), and the type of most tensors
FILE_TYPES: dict[str, tuple[int, str]] = {
    "f16": (1, "F16"),
    "q8_0": (7, "Q8_0"),
    "q6_k": (18, "Q6_K"),
    "q5_k_m": (17, "Q5_K"),
    "q4_k_m": (15, "Q4_K"),
    "q4_0": (2, "Q4_0"),
    "q3_k_m": (12, "Q3_K"),
    "q2_k": (10, "Q2_K"),
}
#: what stands in where the columns are no multiple of 256
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LAYERS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LEAST_BLOCK = 32  #: weights that share a scale, in every type that stands in for another
ALIGNMENT = 32  #: bytes: where each tensor of a file begins
EMBEDDING = "token_embd"


@dataclass(frozen=True)
class Matrix:
    """A two-dimensional tensor of the file, without the suffix `.weight` of its name."""

    name: str
    rows: int
    columns: int
    type: str

    @property
    def bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.type]]
        return int(self.rows * self.columns // block * size)


def matrices(shapes: ModelShapes, file_type: str) -> tuple[Matrix, ...]:
    """The matrices of a file, each with the type that llama.cpp chooses for it.

    Raises:
        QuantizeError: if the model is no Llama, or llama.cpp would quantize none of its layers.
    """
    if shapes.model_type not in (None, "llama"):  # whose layers may be called as a Llama's are
        raise QuantizeError(f"GGUF files are made of Llamas only, not of {shapes.model_type}")
    head = next((linear for linear in shapes.linears if linear.name == shapes.head), None)
    if head is None:
        raise QuantizeError("GGUF files are made of Llamas only: the model has no output head")
    named = [(gguf_name(x.name), x) for x in shapes.linears if x.name != shapes.head]
    if foreign := [linear.name for name, linear in named if name is None]:
        raise QuantizeError(f"GGUF files are made of Llamas only, which have no {foreign[0]}")
    rows = {name: linear.out_features for name, linear in named}
    blocks = len({name.split(".")[1] for name in rows if name})
    for number, layer in itertools.product(range(max(blocks, 1)), LAYERS):
        if (short := f"blk.{number}.{layer}") not in rows:
            lacking = layer_name(short)
            raise QuantizeError(f"GGUF files are made of Llamas only: there is no {lacking}")
    shared = rows["blk.0.attn_q"] // rows["blk.0.attn_k"]  # query heads to a key-value head
    chosen = [(name, x.out_features, x.in_features) for name, x in named if name]
    chosen.append((EMBEDDING, head.out_features, head.in_features))
    if not shapes.tied:
        chosen.append(("output", head.out_features, head.in_features))
    found = tuple(
        Matrix(name, n, k, _type(name, k, file_type, blocks, shared, shapes.tied))
        for name, n, k in chosen
    )
    _refuse_floats_by_another_name(found, file_type)
    return found


def _refuse_floats_by_another_name(found: tuple[Matrix, ...], file_type: str) -> None:
    """llama.cpp says nothing where all that it was to quantize stays as it is."""
    layers = [matrix for matrix in found if matrix.name not in (EMBEDDING, "output")]
    if FILE_TYPES[file_type][1] != "F16" and all(layer.type == "F16" for layer in layers):
        inputs = ", ".join(map(str, sorted({layer.columns for layer in layers})))
        raise QuantizeError(
            f"llama.cpp quantizes rows of a multiple of {LEAST_BLOCK} weights only, and those of "
            f"the layers have {inputs}: a file of type {file_type} would be float16"
        )


def _type(name: str, columns: int, file_type: str, blocks: int, shared: int, tied: bool) -> str:
    wanted = FILE_TYPES[file_type][1]
    if wanted == "F16":
        return wanted
    if name == "output" or (tied and name == EMBEDDING):
        wanted = _of_the_head(wanted, columns)
    elif name != EMBEDDING:
        _, number, part = name.split(".")
        wanted = _of_a_layer(part, int(number), file_type, wanted, blocks, shared)
    if columns % _block(wanted):
        wanted = FALLBACK.get(wanted, wanted)
    return "F16" if columns % _block(wanted) else wanted


def _of_the_head(wanted: str, columns: int) -> str:
    return "Q8_0" if wanted == "Q8_0" or columns % _block(wanted) else "Q6_K"


def _of_a_layer(
    part: str, number: int, file_type: str, wanted: str, blocks: int, shared: int
) -> str:
    """Some layers get more bits: values and the second half of the MLP, first and last blocks."""
    more = _more_bits(number, blocks)
    match part, file_type:
        case "attn_v", "q2_k":
            wanted = "Q4_K" if shared >= 4 else "Q3_K"
        case "attn_v", "q3_k_m":
            wanted = "Q5_K" if number < 2 else "Q4_K"
        case "ffn_down", "q3_k_m":
            wanted = "Q5_K" if number < blocks // 16 else "Q4_K"
        case (("ffn_down" | "attn_output"), "q2_k"):
            wanted = "Q3_K"
        case "attn_output", "q3_k_m":
            wanted = "Q4_K"
        case (("attn_v" | "ffn_down"), ("q4_k_m" | "q5_k_m")) if more:
            wanted = "Q6_K"
    if part == "attn_v" and blocks == 80 and shared > 1 and wanted in ("Q3_K", "Q4_K"):
        return "Q5_K"  # Llama-2-70B, whose values are small
    return wanted


def _more_bits(number: int, blocks: int) -> bool:
    """`use_more_bits` of llama-quant.cpp."""
    eighth = blocks // 8
    return number < eighth or number >= 7 * blocks // 8 or (number - eighth) % 3 == 2


def _block(type_: str) -> int:
    """Weights to a block of this type."""
    return {"F16": 1}.get(type_, 256 if type_.endswith("_K") else LEAST_BLOCK)


def vectors(shapes: ModelShapes) -> Iterator[int]:
    """How many float32 each other tensor has: biases, and two norms a block and one more."""
    head = next(linear for linear in shapes.linears if linear.name == shapes.head)
    blocks = sum(linear.name.endswith(".v_proj") for linear in shapes.linears)
    yield from (linear.out_features for linear in shapes.linears if linear.bias)
    norms = shapes.others - head.out_features * head.in_features
    yield from [norms // (2 * blocks + 1)] * (2 * blocks + 1)


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
