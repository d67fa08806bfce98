"""Checkpoints that were quantized elsewhere: read, loaded, counted, refused."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast

from bitgate.catalog import CatalogError, Execution, Model, load_entries, parse
from bitgate.measure.packing import packed_layers
from bitgate.measure.quantization import bytes_on_disk
from bitgate.measure.weights import weight_errors
from bitgate.metric import Metric
from bitgate.quantize import QuantizeError, checkpoint, method, recipe_types
from bitgate.quantize.checkpoint import CheckpointRecipe
from bitgate.quantize.checkpoint_files import DEQUANTIZED, KERNEL, bits_of, find, quantized_on_disk
from bitgate.sources import load_model

TOKENS = torch.arange(24).reshape(2, 12)


def tokenizer(words):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.fixture(scope="module")
def base(llama, tmp_path_factory):
    """A model of 14 linear layers and a head, as transformers saves it."""
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    tokenizer(["<unk>", "a", "b"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(base, tmp_path_factory):
    """Quantizes it through transformers, once for each way, and saves it."""
    made = {}

    def make(how):
        if how not in made:
            folder = tmp_path_factory.mktemp(how)
            module = AutoModelForCausalLM.from_pretrained(
                base, quantization_config=config(how), dtype=torch.float32, device_map="cpu"
            )
            module.save_pretrained(folder)
            made[how] = folder
        return made[how]

    return make


def config(how):
    if how == "torchao":
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    pytest.importorskip("bitsandbytes")
    return {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    }[how]


@pytest.fixture(scope="module")
def compressed(base, tmp_path_factory):
    """The model in 4 bits as llm-compressor would write it: packed codes, a scale each 32."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors import quantization
    from compressed_tensors.compressors import ModelCompressor
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("compressed")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = quantization.QuantizationArgs(num_bits=4, strategy="group", group_size=32)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    groups = quantization.QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized"
    )
    quantization.apply_quantization_config(module, groups)
    for layer in module.modules():
        if hasattr(layer, "weight_scale"):
            largest = layer.weight.data.unflatten(1, (-1, 32)).abs().amax(-1)
            layer.weight_scale.data = largest / 7.5
            layer.quantization_status = quantization.QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(module)
    compressor.compress_model(module)
    tensors = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    compressor.update_config(folder)
    return folder


def test_one_that_the_library_dequantizes(compressed, model, tmp_path):
    found = find(compressed)
    assert (found.format, found.bits, found.kernel) == ("compressed-tensors", 4, DEQUANTIZED)
    made = checkpoint.quantize(model, recipe(compressed), torch.float32)
    served = made.serve(execution(DEQUANTIZED))
    logits = served.logits(TOKENS)
    assert (served.packed_layers, served.expected_layers) == (0, 0)
    base_bytes = sum(p.nbytes for p in model.module.parameters())
    assert served.memory_bytes() > base_bytes  # as if it were not quantized, and its scales
    errors = weight_errors(model.module, made.weights())
    assert 0.01 < min(errors.values()) <= max(errors.values()) < 0.2
    made.save(tmp_path / "saved")
    assert bytes_on_disk(tmp_path / "saved") < base_bytes / 2
    again = checkpoint.load(tmp_path / "saved").serve(execution(DEQUANTIZED))
    assert torch.equal(again.logits(TOKENS), logits)


def recipe(path, **changes):
    return CheckpointRecipe(label="x", source={"kind": "local", "path": path}, **changes)


def loaded(path):
    source = {"kind": "local", "path": path}
    return load_model(Model.model_validate({"name": "b", "family": "llama", "source": source}))


@pytest.fixture(scope="module")
def model(base):
    return loaded(base)


def execution(kernel):
    return Execution("cpu", "float32", 1, kernel)


@pytest.mark.parametrize(
    ("how", "format_", "bits"),
    [("int8", "bitsandbytes", 8), ("nf4", "bitsandbytes", 4), ("torchao", "torchao", 8)],
)
def test_loaded_as_its_users_load_it(quantized, model, tmp_path, how, format_, bits):
    classes = {"int8": "Linear8bitLt", "nf4": "Linear4bit", "torchao": "Int8Tensor"}
    folder = quantized(how)
    found = find(folder)
    assert (found.format, found.bits, found.kernel) == (format_, bits, KERNEL)
    made = checkpoint.quantize(model, recipe(folder, bits=bits), torch.float32)
    served = made.serve(execution(KERNEL))
    assert served.packed_layers == served.expected_layers == 14
    assert packed_layers(served).by == classes[how]
    logits = served.logits(TOKENS)
    with torch.inference_mode():
        library = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, device_map="cpu"
        )
        assert torch.equal(logits, library.eval()(TOKENS).logits)
    weights = dict(made.weights())
    assert weights.keys() == {n for n, _ in model.module.named_modules() if "_proj" in n}
    errors = weight_errors(model.module, weights.items()).values()
    assert 0.001 < min(errors) <= max(errors) < (0.02 if bits == 8 else 0.15)
    # codes, and not much beside them
    assert served.memory_bytes() < sum(p.nbytes for p in model.module.parameters()) * 0.55

    made.save(tmp_path / "saved")
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert bytes_on_disk(tmp_path / "saved") == weights
    again = checkpoint.load(tmp_path / "saved").serve(execution(KERNEL))
    assert again.packed_layers == 14
    assert torch.equal(again.logits(TOKENS), logits)


def test_a_layer_that_was_dequantized_is_seen(quantized, model):
    made = checkpoint.quantize(model, recipe(quantized("int8")), torch.float32)
    made.module.model.layers[0].mlp.up_proj = torch.nn.Linear(128, 256)
    served = made.serve(execution(KERNEL))
    assert (served.packed_layers, served.expected_layers) == (13, 14)


class Slow(torch.nn.Linear):
    """What a library puts where its fast layer cannot serve."""


@pytest.mark.parametrize("fallen", [1, 13])
def test_a_layer_that_fell_back_to_another_class_is_seen(quantized, model, fallen):
    made = checkpoint.quantize(model, recipe(quantized("int8")), torch.float32)
    for name in list(made.kept)[:fallen]:
        replaced = made.module.get_submodule(name)
        made.module.set_submodule(name, Slow(replaced.in_features, replaced.out_features))
    count = packed_layers(made.serve(execution(KERNEL)))
    assert (count.value, count.expected, count.by) == (13, 14, "Linear8bitLt+Slow")
    assert Metric.of_record(count.name, count.record()) == count


def test_layers_kept_otherwise_may_be_served_otherwise(quantized, model):
    """A checkpoint of mixed widths."""
    made = checkpoint.quantize(model, recipe(quantized("int8")), torch.float32)
    name = next(iter(made.kept))
    made.kept[name] = frozenset({"qweight I32"})
    made.module.set_submodule(name, Slow(128, 128))
    assert made.serve(execution(KERNEL)).packed_layers == 14


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("how", ["int8", "nf4", "torchao"])
def test_layers_of_pickled_weights_are_counted_too(quantized, model, tmp_path, how, shards):
    folder = tmp_path / "pickled"
    made = checkpoint.quantize(model, recipe(quantized(how)), torch.float32)
    pickled(quantized(how), folder, made.module.state_dict(), shards)
    again = checkpoint.quantize(model, recipe(folder), torch.float32)
    served = again.serve(execution(KERNEL))
    assert served.packed_layers == served.expected_layers == 14
    assert torch.equal(served.logits(TOKENS), made.serve(execution(KERNEL)).logits(TOKENS))
    again.module.model.layers[0].mlp.up_proj = torch.nn.Linear(128, 256)
    assert again.serve(execution(KERNEL)).packed_layers == 13


def pickled(folder, into, state, shards=1):
    """The checkpoint in `folder` with its weights, `state`, as torch.save writes them, beside what
    a trainer leaves there."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(object(), into / "training_args.bin")
    if shards == 1:
        torch.save(state, into / "pytorch_model.bin")
        return
    names = [f"pytorch_model-{number:05}.bin" for number in range(shards)]
    index = {key: names[place % shards] for place, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key in state if index[key] == name}, into / name)
    (into / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def test_a_pickle_of_before_zip_files(quantized, model, tmp_path):
    made = checkpoint.quantize(model, recipe(quantized("int8")), torch.float32)
    folder = tmp_path / "pickled"
    pickled(quantized("int8"), folder, {})
    torch.save(
        made.module.state_dict(),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    assert quantized_on_disk(find(folder), made.kept) == made.kept


def test_codes_that_are_called_floats_are_seen_by_their_description(base, model, tmp_path):
    pytest.importorskip("bitsandbytes")
    module = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.float32
        ),
        dtype=torch.float32,
        device_map="cpu",
    )
    module.save_pretrained(tmp_path / "nf4")
    assert module.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    served = checkpoint.quantize(model, recipe(tmp_path / "nf4"), torch.float32).serve(
        execution(KERNEL)
    )
    assert served.packed_layers == served.expected_layers == 14


@pytest.mark.parametrize("bin_file", [False, True])
def test_one_of_which_nothing_is_quantized_is_refused(base, model, tmp_path, bin_file):
    """Zero layers of zero would pass any gate."""
    pytest.importorskip("bitsandbytes")
    how = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    other = change(base, tmp_path / "other", quantization_config=how)
    if bin_file:
        pickled(other, tmp_path / "pickled", model.module.state_dict())
        other = tmp_path / "pickled"
    refused(model, other, f"{other}: its config.json says bitsandbytes, but its files hold no")


def test_one_that_is_not_quantized_is_measured_and_said_to_be_so(base, model):
    assert find(base).kernel == DEQUANTIZED
    with pytest.warns(UserWarning, match="recipe checkpoint-x: .* is not quantized; it is"):
        made = checkpoint.quantize(model, recipe(base), torch.float32)
    served = made.serve(execution(DEQUANTIZED))
    with torch.inference_mode():
        assert torch.equal(served.logits(TOKENS), model.module(TOKENS).logits)
    assert (served.packed_layers, served.expected_layers) == (0, 0)


def test_nothing_is_predicted_and_the_rest_is_measured(quantized, model):
    """The whole measurement, as a benchmark makes it."""
    from bitgate.measure.quantization import quantization

    folder = quantized("int8")
    how = method("checkpoint")
    kernel = how.kernel(None, recipe(folder), "cpu")
    measured = quantization(
        model, recipe(folder), execution(kernel), lambda made: made.serve(execution(kernel))
    )
    (batch,) = measured.batches()
    found = {metric.name: metric for metric in measured.metrics(batch.items, 0.98, 0.98)}
    assert found["size_mib"].expected is None
    assert found["memory_mib"].expected is None
    assert found["size_mib"].value == (folder / "model.safetensors").stat().st_size / 2**20
    assert found["reload_difference"].value == 0


def test_shards_that_the_index_does_not_name_do_not_count(base, tmp_path):
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder, max_shard_size="300KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    (folder / "older.safetensors").write_bytes(b"left behind")
    (folder / "pytorch_model.bin").write_bytes(b"the same again")
    assert find(folder).weights() == shards


# --- what a configuration says -------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, 3),
        ({"quant_method": "awq", "w_bit": 4}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, 4),
        ({"config_groups": {"a": {"weights": {"num_bits": 4}}}}, 4),
        (
            {"config_groups": {x: {"weights": {"num_bits": b}} for x, b in (("a", 4), ("b", 8))}},
            None,
        ),
        ({"config_groups": {"a": {"weights": None}}}, None),
        ({}, None),
    ],
)
def test_bits(config, bits):
    assert bits_of(config) == bits


def by_layer(**names):
    layers = {layer: name and {"_type": name, "_data": {}} for layer, name in names.items()}
    return {"_type": "ModuleFqnToConfig", "_data": {"module_fqn_to_config": layers}}


@pytest.mark.parametrize(
    ("said", "bits"),
    [
        ("Int4WeightOnlyConfig", 4),
        ("Int8WeightOnlyConfig", 8),
        ("Float8WeightOnlyConfig", 8),
        ("Int8DynamicActivationInt8WeightConfig", 8),
        ("Int8DynamicActivationInt4WeightConfig", 4),
        ("Float8DynamicActivationInt4WeightConfig", 4),
        ("Float8DynamicActivationFloat8SemiSparseWeightConfig", 8),
        ("NVFP4DynamicActivationNVFP4WeightConfig", 4),
        ("IntxWeightOnlyConfig", None),  # its argument says
        ("Int8DynamicActivationIntxWeightConfig", None),
        (by_layer(_default="Int4WeightOnlyConfig", lm_head=None), 4),
        (by_layer(_default="Int4WeightOnlyConfig", lm_head="Int8WeightOnlyConfig"), None),
        (by_layer(_default="Int4WeightOnlyConfig", lm_head="IntxWeightOnlyConfig"), None),
    ],
    ids=str,
)
def test_bits_of_torchaos_weights_not_of_activations(said, bits):
    default = {"_type": said, "_data": {"group_size": 32}} if isinstance(said, str) else said
    assert bits_of({"quant_method": "torchao", "quant_type": {"default": default}}) == bits


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4_weight_only", 4),
        ("int8_weight_only", 8),
        ("int8_dynamic_activation_int8_weight", 8),
        ("int8_dynamic_activation_int4_weight", 4),
        ("autoquant", None),
    ],
)
def test_bits_of_torchao_as_it_was_written_before(name, bits):
    assert bits_of({"quant_method": "torchao", "quant_type": name}) == bits


# --- what is refused -----------------------------------------------------------------------


def change(folder, into, **changes):
    shutil.copytree(folder, into)
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps(config | changes))
    return into


def refused(model, path, message, **changes):
    with pytest.raises(QuantizeError, match=f"^recipe checkpoint-x: {message}"):
        checkpoint.quantize(model, recipe(path, **changes), torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 255}, "vocab_size is 255, the base's is 256"),
        ({"model_type": "mistral"}, "model_type is mistral, the base's is llama"),
        (
            {"hidden_size": 64, "num_hidden_layers": 1},
            "hidden_size is 64.*; num_hidden_layers is 1",
        ),
    ],
)
def test_another_model(base, model, tmp_path, changes, message):
    other = change(base, tmp_path / "other", **changes)
    refused(model, other, f".*other is of another model than the base: {message}")


def test_another_tokenizer(base, model, tmp_path):
    other = change(base, tmp_path / "other")
    tokenizer(["<unk>", "b", "a"]).save_pretrained(other)
    refused(model, other, ".*its tokenizer numbers 2 words otherwise than the base's, 'a' for")


def test_more_words_do_no_harm(base, model, tmp_path):
    other = change(base, tmp_path / "other")
    tokenizer(["<unk>", "a", "b", "c"]).save_pretrained(other)
    with pytest.warns(UserWarning, match="is not quantized"):
        checkpoint.quantize(model, recipe(other), torch.float32)


def test_weights_that_are_missing_are_not_made_up(base, model, tmp_path):
    from safetensors.torch import load_file, save_file

    other = change(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    refused(model, other, r".*other: it lacks model\.layers\.1\.mlp\.up_proj\.weight$")


def test_bits_that_the_checkpoint_contradicts(quantized, model):
    refused_bits = recipe(quantized("nf4"), bits=8)
    with pytest.raises(QuantizeError, match="checkpoint-x: bits: the checkpoint says 4, not 8"):
        checkpoint.fetch(refused_bits)


def test_a_package_that_is_missing_is_named(base, model, tmp_path, monkeypatch):
    how = {"quant_method": "compressed-tensors", "config_groups": {}}
    other = change(base, tmp_path / "other", quantization_config=how)
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    refused(model, other, ".* needs compressed-tensors: pip install compressed-tensors$")


def test_a_format_that_the_library_does_not_know(base, model, tmp_path):
    how = {"quant_method": "magic", "bits": 2}
    other = change(base, tmp_path / "other", quantization_config=how)
    refused(model, other, ".*transformers does not know checkpoints of 'magic'; there is .*awq")


def test_paths_that_are_no_checkpoint(tmp_path):
    for name, message in (
        ("none", "none: there is no such checkpoint"),
        ("empty", "empty: it has no config.json$"),
        ("gguf", r"gguf: it has no config.json; give the file itself: .*/m\.gguf"),
        ("damaged", "damaged: config.json cannot be read"),
        ("bare", r"bare: it has no \.safetensors and no \.bin weights"),
        ("text.txt", r"text\.txt: a checkpoint is a directory or a \.gguf file"),
        ("gguf/m.gguf", r"m\.gguf: not a GGUF file"),
    ):
        for folder in ("empty", "gguf", "damaged", "bare"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "gguf/m.gguf").write_bytes(b"no")
        (tmp_path / "damaged/config.json").write_text("{")
        (tmp_path / "bare/config.json").write_text("{}")
        (tmp_path / "text.txt").write_text("hello")
        with pytest.raises(QuantizeError, match=message):
            find(tmp_path / name)


def test_recipes(tmp_path):
    (tmp_path / "recipes.toml").write_text(
        '[[recipe]]\nmethod = "checkpoint"\nlabel = "mine"\nbits = 4\n'
        'source = { kind = "local", path = "../mine" }\n'
    )
    read = load_entries(tmp_path, recipe_types()).recipes["checkpoint-mine"]
    assert read.source.path == tmp_path / "../mine"  # from the TOML file's folder on
    assert read.bits == 4
    assert CheckpointRecipe.model_validate_json(read.model_dump_json()) == read
    for keys, message in (
        ({"label": "x"}, "here: source: this key is missing"),
        ({"label": "x", "source": {"kind": "shapes"}}, "here: source"),
        ({"label": "x", "source": {"kind": "local", "path": "p"}, "kernel": "cpu-int4"}, "kernel"),
    ):
        with pytest.raises(CatalogError, match=message):
            parse(CheckpointRecipe, {"method": "checkpoint", **keys}, "here")
