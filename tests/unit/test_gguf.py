"""GGUF: which type llama.cpp gives to a tensor, sizes from shapes alone; and with its binding, the
same tokens scored as torch scores them."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

from bitgate.catalog import CatalogError
from bitgate.kernels import KernelError
from bitgate.measure.weights import weight_errors
from bitgate.quantize import QuantizeError, shapes_of
from bitgate.quantize import gguf as ours
from bitgate.quantize.gguf import GgufRecipe, load, tensor_types
from bitgate.quantize.gguf_export import (
    export,
    gguf_name,
    in_halves,
    interleaved,
    layer_name,
    rope_factors,
)
from bitgate.quantize.gguf_types import FILE_TYPES, Matrix, matrices, padded
from bitgate.quantize.shapes import LinearShape, ModelShapes

lacking = importlib.util.find_spec("llama_cpp") is None
with_llama_cpp = pytest.mark.skipif(lacking, reason="pip install 'bitgate[gguf]'; tox -e gguf")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
#: rows of K-quants fit 256; one block uses each kind of fallback
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}


def recipe(name="q8_0", **changes):
    return GgufRecipe.model_validate({"type": name, **changes})


# --- names, order, frequencies -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head", "output"),
        ("model.layers.0.self_attn.q_norm.weight", None),
        ("model.layers.x.mlp.up_proj", None),
        ("model.normal.weight", None),
        ("classifier.weight", None),
    ],
)
def test_names(name, short):
    assert gguf_name(name) == short


def test_names_are_those_of_the_gguf_package(llama):
    from gguf import MODEL_ARCH, get_tensor_name_map

    known = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    for name, _ in llama(attention_bias=True).named_parameters():
        assert gguf_name(name) == known.get_name(name, try_suffixes=(".weight", ".bias"))


def test_names_of_layers_and_back(llama):
    base = llama()
    linears = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)][:-1]
    assert [layer_name(gguf_name(name)) for name in linears] == linears


def test_pairs_are_put_side_by_side():
    rows = torch.tensor([[0.0], [1], [2], [10], [11], [12]])[torch.tensor([0, 1, 3, 4])]
    # one head of four: first halves 0 and 1, second halves 10 and 11
    assert interleaved(rows, 1).flatten().tolist() == [0, 10, 1, 11]
    # two heads of two are in order already
    assert interleaved(rows, 2).flatten().tolist() == [0, 1, 10, 11]
    assert in_halves(interleaved(rows, 1), 1).flatten().tolist() == [0, 1, 10, 11]


def test_frequencies_that_are_plain_need_no_table(llama):
    assert rope_factors(llama()) is None
    assert rope_factors(llama(rope_theta=1234.5)) is None


def test_scaled_frequencies_become_a_table(llama):
    """llama3 divides those of long waves by its factor, and leaves short ones alone."""
    factors = rope_factors(llama(rope_parameters=LLAMA3)).tolist()
    assert factors[0] == pytest.approx(1)
    assert factors[-1] == pytest.approx(32, rel=1e-5)
    assert factors == sorted(factors)


# --- types and sizes -----------------------------------------------------------------------


def test_blocks_and_bytes_are_the_gguf_packages():
    for _, most in FILE_TYPES.values():
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[most]]
        assert Matrix("x", 3, 2 * block, most).bytes == 6 * size


def llama_shapes(blocks, hidden, inner, *, shared=1, vocabulary=1000, tied=True):
    """The shapes of a Llama, written down."""
    parts = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // shared, hidden),
        "self_attn.v_proj": (hidden // shared, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    linears = [
        LinearShape(f"model.layers.{block}.{name}", rows, columns, bias=False)
        for block in range(blocks)
        for name, (rows, columns) in parts.items()
    ]
    linears.append(LinearShape("lm_head", vocabulary, hidden, bias=False))
    others = vocabulary * hidden + (2 * blocks + 1) * hidden
    return ModelShapes(tuple(linears), others, 0, "lm_head", tied)


def types(shapes, name):
    return {matrix.name: matrix.type for matrix in matrices(shapes, name)}


def test_a_file_of_one_type():
    for name in ("q8_0", "f16"):
        assert set(types(llama_shapes(4, 512, 1024), name).values()) == {name.upper()}


def test_columns_that_do_not_fit_get_another_type():
    """576, the width of SmolLM2, is no multiple of 256; its MLP's 1536 is."""
    shapes = llama_shapes(30, 576, 1536, shared=3)
    assert types(shapes, "q4_k_m")["blk.7.attn_q"] == "Q5_0"
    assert types(shapes, "q4_k_m")["blk.7.ffn_down"] == "Q4_K"
    assert types(shapes, "q5_k_m")["blk.7.attn_q"] == "Q5_1"
    assert types(shapes, "q2_k")["blk.7.attn_q"] == "Q4_0"
    assert types(shapes, "q3_k_m")["blk.7.attn_q"] == "Q4_0"
    assert types(shapes, "q6_k")["blk.7.attn_q"] == "Q8_0"
    for name in ("q4_0", "q4_k_m", "q2_k"):
        assert types(shapes, name)["token_embd"] == "Q8_0"


@pytest.mark.parametrize("name", [name for name in FILE_TYPES if name != "f16"])
def test_a_file_without_a_quantized_layer_is_refused(name):
    """80 and 240 are no multiples of 32, the least that any type shares a scale among."""
    shapes = llama_shapes(2, 80, 240)
    reason = rf"gguf-{name}: .* of a multiple of 32 .* have 80, 240: .* {name} would be float16"
    with pytest.raises(QuantizeError, match=reason):
        ours.kernel(shapes, recipe(name), "cpu")
    assert set(types(shapes, "f16").values()) == {"F16"}
    some = types(llama_shapes(2, 80, 256), name)  # of which only the MLP's second half fits
    assert {part for part, found in some.items() if found != "F16"} == {
        "blk.0.ffn_down",
        "blk.1.ffn_down",
    }


def test_some_layers_get_more_bits():
    found = types(llama_shapes(16, 2048, 8192, shared=4), "q4_k_m")
    assert found["token_embd"] == "Q6_K"
    more = [0, 1, 4, 7, 10, 13, 14, 15]
    for part in ("attn_v", "ffn_down"):
        assert [n for n in range(16) if found[f"blk.{n}.{part}"] == "Q6_K"] == more
    assert found["blk.0.attn_k"] == "Q4_K"
    assert types(llama_shapes(16, 2048, 8192, shared=4), "q2_k")["blk.3.attn_v"] == "Q4_K"
    assert types(llama_shapes(16, 2048, 8192, shared=2), "q2_k")["blk.3.attn_v"] == "Q3_K"
    third = types(llama_shapes(32, 2048, 8192), "q3_k_m")
    assert [third[f"blk.{n}.attn_v"] for n in range(4)] == ["Q5_K", "Q5_K", "Q4_K", "Q4_K"]
    assert [third[f"blk.{n}.ffn_down"] for n in range(4)] == ["Q5_K", "Q5_K", "Q4_K", "Q4_K"]


def test_a_head_of_its_own_gets_more_bits_than_the_embedding():
    found = types(llama_shapes(2, 512, 1024, tied=False), "q4_0")
    assert (found["output"], found["token_embd"]) == ("Q6_K", "Q4_0")


def test_a_size_counted_by_hand():
    """One block, 4-bit blocks of 18 bytes for 32 weights; 8 bits, 34 bytes, for the embedding."""
    shapes = llama_shapes(1, 96, 128, vocabulary=10)
    size = ours.predicted_bytes(shapes, recipe("q4_0"), "llama.cpp", 4)
    attention, mlp = 4 * (96 * 96 // 32 * 18), 3 * (96 * 128 // 32 * 18)
    embedding, norms = 10 * 96 // 32 * 34, 3 * 4 * 96
    assert size.memory == attention + mlp + embedding + norms
    assert size.disk == size.memory + padded(embedding) - embedding  # all others fit 32 bytes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_export_has_the_size_predicted(llama, tmp_path, tied, bias):
    base = llama(tie_word_embeddings=tied, attention_bias=bias, vocab_size=250)
    path = tmp_path / "f16.gguf"
    export(base, path, {"bitgate.note": "hello"})
    reader = GGUFReader(path)
    predicted = ours.predicted_bytes(shapes_of(base), recipe("f16"), "llama.cpp", 4)
    assert sum(int(tensor.n_bytes) for tensor in reader.tensors) == predicted.memory
    assert path.stat().st_size - reader.data_offset == predicted.disk
    assert reader.get_field("bitgate.note").contents() == "hello"
    held = {tensor.name: tensor.data for tensor in reader.tensors}
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(torch.tensor(held[gguf_name(name)]), base.get_parameter(name).half())
    assert ("output.weight" in held) != tied


# --- with llama.cpp ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantize(llama, loaded):
    def make(name, **model):
        base = llama(**model)
        return base, ours.quantize(loaded(base), recipe(name), torch.float32)

    return make


@pytest.fixture
def tokens():
    return torch.randint(0, 256, (3, 70), generator=torch.Generator().manual_seed(0))


@with_llama_cpp
@pytest.mark.parametrize("name", FILE_TYPES)
@pytest.mark.parametrize(
    "model",
    [WIDE, {"num_hidden_layers": 9, "tie_word_embeddings": True}, {**WIDE, "attention_bias": True}],
    ids=["wide", "narrow and tied", "biased"],
)
def test_size_types_and_file(quantize, execution, tmp_path, tokens, name, model):
    """llama.cpp chooses the types that are predicted; a file gives the same logits back."""
    base, found = quantize(name, **model)
    predicted = ours.predicted_bytes(shapes_of(base), found.recipe, "llama.cpp", 4)
    wanted = {f"{m.name}.weight": m.type for m in matrices(shapes_of(base), name)}
    held = tensor_types(found.path)
    assert {key: kind for key, kind in held.items() if key in wanted} == wanted
    assert set(held.values()) == {*wanted.values(), "F32"}
    served = found.serve(execution("llama.cpp"))
    assert served.packed_layers == served.expected_layers == 7 * base.config.num_hidden_layers
    assert served.memory_bytes() == predicted.memory
    path = tmp_path / "model.safetensors"  # what it is called does not matter
    found.save(path)
    assert path.stat().st_size - GGUFReader(path).data_offset == predicted.disk
    again = load(path)
    assert (again.recipe, again.layers) == (found.recipe, found.layers)
    logits = again.serve(execution("llama.cpp")).logits(tokens)
    assert torch.equal(logits, served.logits(tokens))


@with_llama_cpp
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"tie_word_embeddings": True, "attention_bias": True},
        {"rope_parameters": LLAMA3},
        {"num_key_value_heads": 4, "head_dim": 64},
    ],
    ids=str,
)
def test_logits_are_torchs(quantize, served, execution, tokens, model):
    """float16 weights and a float16 cache; another order of rotary pairs would be far off."""
    base, found = quantize("f16", **model)
    mine = found.serve(execution("llama.cpp"))
    expected = served(base).logits(tokens)
    assert mine.vocabulary == expected.shape[-1]
    assert mine.context == base.config.max_position_embeddings
    difference = mine.logits(tokens) - expected
    assert float(difference.abs().max()) < 0.01 * float(expected.std())


@with_llama_cpp
@pytest.mark.parametrize(
    ("name", "low", "high"), [("f16", 0, 4e-4), ("q8_0", 2e-3, 8e-3), ("q4_0", 0.05, 0.12)]
)
def test_weights_are_the_bases_but_for_rounding(quantize, name, low, high):
    """Of each layer: with rotary pairs in another order, one would be off by its whole size."""
    base, found = quantize(name, num_key_value_heads=1)
    errors = weight_errors(base, found.weights())
    linears = {n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
    assert errors.keys() == linears - {"lm_head"}
    assert all(low < error < high for error in errors.values())


@with_llama_cpp
def test_it_decodes_as_torch_does(quantize, served, execution, tokens):
    base, found = quantize("f16")
    mine, theirs = found.serve(execution("llama.cpp")), served(base)
    for prompt in (tokens[:, :20], tokens[:, 20:40]):  # the second one starts anew
        mine.prefill(prompt, 8)
        read = [prompt, torch.tensor(mine._next)[:, None]]
        read += [mine.decode_step()[:, None] for _ in range(8)]
        logits = theirs.logits(torch.cat(read, 1))[:, 19:-1]
        chosen = logits.gather(-1, torch.cat(read[1:], 1)[..., None])[..., 0]
        # the likeliest but for rounding: others are far less likely
        assert float((logits.amax(-1) - chosen).max()) < 0.02 * float(logits.std())
    # scoring in between needs another cache
    mine.logits(tokens)
    with pytest.raises(RuntimeError, match="comes after prefill"):
        mine.decode_step()


@with_llama_cpp
def test_threads_are_those_of_the_execution(quantize, execution, monkeypatch, tokens):
    from bitgate.kernels import llama_cpp

    _, found = quantize("f16")
    seen = []
    library = llama_cpp.library()
    make = library.llama_init_from_model

    def init(model, parameters):
        seen.append((parameters.n_threads, parameters.n_threads_batch))
        return make(model, parameters)

    monkeypatch.setattr(library, "llama_init_from_model", init)
    found.serve(execution("llama.cpp", threads=2)).logits(tokens)
    assert seen == [(2, 2)]


@with_llama_cpp
def test_nothing_is_written_and_nothing_stays(quantize, execution, capfd, tokens):
    import gc

    _, found = quantize("q4_0")
    folder = found.path.parent
    served = found.serve(execution("llama.cpp"))
    del found
    gc.collect()
    served.logits(tokens)  # the file is there as long as something answers from it
    assert folder.is_dir()
    del served
    gc.collect()
    assert not folder.exists()
    assert capfd.readouterr() == ("", "")


@with_llama_cpp
def test_a_type_that_was_not_expected_is_seen(quantize, execution):
    _, found = quantize("q8_0")
    found.layers["blk.0.attn_q.weight"] = "Q4_0"
    served = found.serve(execution("llama.cpp"))
    assert (served.packed_layers, served.expected_layers) == (13, 14)


@with_llama_cpp
def test_files_that_are_something_else(llama, tmp_path):
    text = tmp_path / "text"
    text.write_text("hello, this is not a model")
    with pytest.raises(QuantizeError, match="text: not a GGUF file"):
        load(text)
    export(llama(), tmp_path / "other", {})
    with pytest.raises(QuantizeError, match="other: expected format bitgate-gguf-1, got None"):
        load(tmp_path / "other")


# --- errors --------------------------------------------------------------------------------


def test_models_that_are_no_llamas():
    shapes = ModelShapes((LinearShape("fc1", 64, 64, True),), 0, 0, None, False)
    with pytest.raises(QuantizeError, match=r"recipe gguf-q8_0: .*Llamas only: .* no output head"):
        ours.kernel(shapes, recipe(), "cpu")
    shapes = ModelShapes(
        (LinearShape("fc1", 64, 64, True), LinearShape("head", 9, 64, False)), 0, 0, "head", False
    )
    with pytest.raises(QuantizeError, match=r"recipe gguf-q8_0: .*Llamas only, which have no fc1"):
        ours.kernel(shapes, recipe(), "cpu")


def test_what_only_looks_like_a_llama():
    """Its layers have the same names and shapes: only the architecture tells."""
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 100}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.device("meta"):
        shapes = shapes_of(MistralForCausalLM(MistralConfig(**sizes, **heads)))
    with pytest.raises(QuantizeError, match=r"gguf-q8_0: .* Llamas only, not of mistral"):
        ours.kernel(shapes, recipe(), "cpu")
    # a lock of before does not say it: then the export does
    assert ours.kernel(replace(shapes, model_type=None), recipe(), "cpu") == ours.KERNEL


def test_a_llama_that_lacks_a_layer():
    whole = llama_shapes(2, 512, 1024)
    linears = tuple(x for x in whole.linears if x.name != "model.layers.1.self_attn.k_proj")
    shapes = ModelShapes(linears, whole.others, 0, whole.head, whole.tied)
    with pytest.raises(QuantizeError, match=r"gguf-q8_0: .* no model\.layers\.1\..*k_proj"):
        ours.kernel(shapes, recipe(), "cpu")


def test_frequencies_that_change_while_it_runs(llama, loaded):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    base = llama(rope_parameters=rope)
    with pytest.raises(QuantizeError, match="recipe gguf-f16: rotary embeddings of type 'dynamic'"):
        ours.quantize(loaded(base), recipe("f16"), torch.float32)


def test_another_device(llama):
    with pytest.raises(KernelError, match=r"recipe gguf-q8_0: llama\.cpp runs on cpu only"):
        ours.kernel(shapes_of(llama()), recipe(), "cuda:0")
    shapes = ModelShapes((LinearShape("fc1", 64, 64, True),), 0, 0, None, False)
    with pytest.raises(QuantizeError, match="Llamas only"):  # there neither
        ours.kernel(shapes, recipe(), "cuda:0")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("type = 'q4_k'", r"number 1: type: llama\.cpp has no type 'q4_k' here; did you mean 'q4_"),
        ("type = ['q4_0', 'iq2_xxs']", r"number 1: type: llama\.cpp has no type 'iq2_xxs' here"),
        ("type = 'q4_0'\nbits = 4", r"number 1: bits: .* leave the key out \(got 4\)"),
        ("type = 'q4_0'\ngroup_size = 32", r"number 1: group_size: .* leave the key out"),
        ("type = 'q4_0'\nkernel = 'cpu-int4'", r"number 1: kernel: .* served by llama\.cpp only"),
        ("", r"number 1: type: this key is missing"),
    ],
)
def test_recipes_that_are_wrong(tmp_path, toml, message):
    from bitgate import quantize
    from bitgate.catalog import load_entries

    (tmp_path / "recipes.toml").write_text(f"[[recipe]]\nmethod = 'gguf'\n{toml}\n")
    with pytest.raises(CatalogError, match=message):
        load_entries(tmp_path, quantize.recipe_types())
