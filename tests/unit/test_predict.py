"""`bitgate predict`: beside files that were saved, and what it says where it cannot."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bitgate.catalog import DEFAULTS, load_entries
from bitgate.cli import main
from bitgate.quantize import method, recipe_types
from bitgate.quantize.footprint import Need, base_bytes, meant, need, nominal_bits

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
MIB = 2**20


@pytest.fixture
def predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixtures").mkdir()

    def run(*arguments, status=0):
        done = CliRunner().invoke(main, ["predict", "--device", "cpu", *arguments])
        assert done.exit_code == status, done.output
        return done

    return run


@pytest.fixture
def config(tmp_path):
    def write(name="tiny", **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        path = tmp_path / name / "config.json"
        given = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
        path.write_text(json.dumps(given))
        return str(path)

    return write


def cells(done):
    content = json.loads(done.stdout)
    return {cell["recipe"]: cell for model in content["models"] for cell in model["cells"]}


# --- beside what is saved --------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "attention_bias": True}])
def test_from_the_configuration_alone_to_the_byte(
    predict, config, loaded, execution, tmp_path, changes
):
    """The file that a model read from a directory leaves, and what it takes in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from bitgate.sources.architecture import config_from

    names = ("hqq-w8g64", "hqq-w3g64", "hqq-w4g64-head4", "hqq-plan-ends-finer", "linear-w4g64")
    asked = [part for name in names for part in ("--recipe", name)]
    found = cells(predict("--config", config(**changes), *asked, "--json"))
    AutoModelForCausalLM.from_config(config_from({**TINY, **changes})).save_pretrained(
        tmp_path / "saved"
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    base = base.eval().requires_grad_(False)
    known = load_entries(DEFAULTS, recipe_types()).recipes
    for name in names:
        recipe = known[name]
        made = method(recipe.method).quantize(loaded(base), recipe, torch.float32)
        made.save(tmp_path / "file")
        assert found[name]["disk_bytes"] == (tmp_path / "file").stat().st_size
        served = made.serve(execution(found[name]["kernel"]))
        assert found[name]["memory_bytes"] == served.memory_bytes()


EXACT = (
    "hqq-w4g64",
    "hqq-w3g64",
    "hqq-w4g64-head4",
    "bitsandbytes-int8",
    "bitsandbytes-nf4",
    "bitsandbytes-nf4-double",
    "linear-w4g64",
    "linear-w8-channel-symmetric",
    "torchao-w8",
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_sixteen_bits_to_the_byte(predict, config, loaded, tmp_path, dtype):
    """Both take two bytes, but not as many in a header, which names them tensor by tensor."""
    import torch
    from transformers import AutoModelForCausalLM

    from bitgate.sources.architecture import config_from

    asked = [part for name in EXACT for part in ("--recipe", name)]
    given = {"attention_bias": True, "tie_word_embeddings": False}
    found = cells(predict("--config", config(**given), *asked, "--dtype", dtype, "--json"))
    AutoModelForCausalLM.from_config(config_from({**TINY, **given})).save_pretrained(
        tmp_path / "saved"
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=getattr(torch, dtype))
    base = base.eval().requires_grad_(False)
    known = load_entries(DEFAULTS, recipe_types()).recipes
    for name in EXACT:
        made = method(known[name].method).quantize(loaded(base), known[name], base.dtype)
        made.save(tmp_path / "file")
        assert (name, found[name]["disk_bytes"]) == (name, (tmp_path / "file").stat().st_size)


def test_a_locked_model_needs_no_torch(tmp_path):
    """Whoever asks for what comes with Bitgate waits for nothing."""
    import subprocess
    import sys

    program = (
        "import sys; from bitgate.cli import main\n"
        "try: main(['predict', '--device', 'cpu', '--model', 'llama-2-7b', '--recipe', 'nf4'])\n"
        "finally: print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "bitsandbytes-nf4" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("[]")


def test_llama_2_7b(predict):
    """By hand: 32 blocks of 4 x 4096^2 + 3 x 4096 x 11008 weights in groups of 64."""
    asked = ["--model", "llama-2-7b", "--recipe", "hqq-w4g64", "--recipe", "nf4"]
    content = json.loads(predict(*asked, "--dtype", "float16", "--memory", "16", "--json").stdout)
    (model,) = content["models"]
    assert model["parameters"] == 6_738_415_616
    assert model["base_bytes"] == 2 * 6_738_415_616 + 512
    assert model["cache_bytes"] == 2 * 2 * 32 * 4096 * 4096
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 2 * (6_738_415_616 - linear)
    by_name = {cell["recipe"]: cell for cell in model["cells"]}
    hqq = by_name["hqq-w4g64"]
    assert hqq["disk_bytes"] - hqq["header_bytes"] == rest + linear // 2 + linear // 64 * 4
    nf4 = by_name["bitsandbytes-nf4"]
    maps = 32 * 7 * 16 * 4
    assert nf4["disk_bytes"] - nf4["header_bytes"] == rest + linear // 2 + linear // 64 * 4 + maps
    assert nf4["rule_of_thumb_bytes"] == 6_738_415_616 // 2
    serving = int((nf4["memory_bytes"] + model["cache_bytes"]) * 1.15)
    assert nf4["serving_bytes"] == serving
    assert nf4["fits"] == "alone"  # 13.5 GB of base are too much beside it


def test_what_batch_norms_count_and_keep_are_no_parameters(predict):
    """torchvision says 3,504,872 parameters of MobileNetV2. Its 52 norms keep 17,056 means and as
    many variances in float32 too, and a counter each, of 8 bytes."""
    asked = ("--model", "mobilenet-v2", "--dtype", "float32", "--memory", "8", "--json")
    (model,) = json.loads(predict(*asked).stdout)["models"]
    assert model["parameters"] == 3_504_872
    assert model["base_bytes"] == 4 * (3_504_872 + 2 * 17_056) + 52 * 8 == 14_156_352
    by_name = {cell["recipe"]: cell for cell in model["cells"]}
    assert by_name["linear-w8-channel"]["rule_of_thumb_bytes"] == 3_504_872


def test_parameters_and_bytes_as_torch_counts_them():
    from bitgate.quantize import shapes_of
    from bitgate.sources.architecture import config_from, skeleton

    config = config_from({"model_type": "mobilenet_v2", "num_labels": 10, "depth_multiplier": 0.5})
    module = skeleton(config, "image-classification")
    shapes = shapes_of(module)
    assert shapes.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert base_bytes(shapes, "float32") == sum(t.nbytes for t in module.state_dict().values())


@pytest.mark.parametrize(("gib", "fits"), [("1000", "yes"), ("0.001", "alone"), ("0.0005", "no")])
def test_whether_it_fits(predict, config, gib, fits):
    """The base takes 1,313,280 bytes, at 8 bits 465,408, a cache of 4 x 16 tokens 65,536: with
    headroom 0.0020 GiB, and 0.00057 without the base."""
    asked = ("--recipe", "hqq-w8g64", "--context", "16", "--batch", "4", "--memory", gib)
    content = json.loads(predict("--config", config(), *asked, "--json").stdout)
    assert content["models"][0]["cache_bytes"] == 4 * 16 * 2 * 2 * 2 * 32 * 4
    assert content["models"][0]["cells"][0]["fits"] == fits


@pytest.mark.parametrize("gib", ["nan", "inf", "1e400", "1e308", "0", "-inf"])
def test_an_amount_of_memory_that_is_none(predict, config, gib):
    done = predict("--config", config(), "--memory", gib, status=2)
    assert "Invalid value for '--memory'" in done.stderr


def test_where_free_memory_is_not_known(predict, config, monkeypatch):
    """As in a container without /proc."""
    monkeypatch.setattr("psutil.PROCFS_PATH", "/nonexistent")
    monkeypatch.setattr("bitgate.sources.memory._cgroup_available", lambda: None)
    done = predict("--config", config(), status=4)
    assert "ERROR: how much memory is free is not known here, " in done.stderr
    assert "give --memory GIB" in done.stderr
    assert "nf4" in predict("--config", config(), "--memory", "8").stdout


def test_a_cache_whose_layers_differ_is_not_guessed(predict, config):
    """Gemma 4's full attention has wider heads than its sliding one."""
    path = config(model_type="gemma4_text", architectures=["Gemma4ForCausalLM"], head_dim=32)
    done = predict("--config", path, "--recipe", "nf4", "--memory", "8", "--json")
    assert json.loads(done.stdout)["models"][0]["cache_bytes"] is None


# --- tables ----------------------------------------------------------------------------------


def test_the_table(predict, config):
    done = predict("--config", config(), "--memory", "8")
    assert "tiny: 328,320 parameters, the head's one with the embedding's" in done.stdout
    assert "hqq-w4g64-head4-rtn" in done.stdout
    assert "8.00 GiB asked for" in done.stdout
    assert "no history" in done.stdout
    sizes = [line.split()[2] for line in done.stdout.splitlines() if " no history" in line]
    numbers = [float(size.removeprefix("~")) for size in sizes]
    assert numbers == sorted(numbers)
    assert len(numbers) > 60


EXPERTS = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 16,
    "tie_word_embeddings": False,
}


def test_a_model_of_experts_says_how_much_no_method_touches(predict, config):
    """By hand: 16 experts of three matrices of 128 x 256 in each layer."""
    (model,) = json.loads(predict("--config", config(**EXPERTS), "--json").stdout)["models"]
    experts = model["parameters"] - model["linear_parameters"]
    assert experts >= TINY["num_hidden_layers"] * 16 * 3 * 128 * 256
    share = f"{100 * experts / model['parameters']:.0f} % of its parameters are in no linear layer"
    assert share in predict("--config", config(**EXPERTS)).stdout
    assert "in no linear layer" not in predict("--config", config()).stdout


def test_a_classifier_keeps_nothing_of_tokens(predict, config):
    path = config(architectures=["LlamaForSequenceClassification"])
    assert "; no key-value cache" in predict("--config", path).stdout


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_a_context_of_more_tokens_than_there_are_positions(predict, config, kind):
    """Of any architecture, whatever its configuration calls them."""
    path = config(
        model_type=kind,
        architectures=None,
        n_positions=100 if kind == "gpt2" else None,
        max_position_embeddings=None if kind == "gpt2" else 100,
        head_dim=32,
        **dict.fromkeys(("n_embd", "n_layer", "n_head"), 4 if kind == "gpt2" else None),
    )
    for context in (100, 101):
        done = predict("--config", path, "--context", str(context), "--markdown")
        assert f"key-value cache of 1 x {context} tokens" in done.stdout
        assert (", though it has only 100 positions" in done.stdout) == (context > 100)
    done = predict("--config", path, "--json")
    assert json.loads(done.stdout)["models"][0]["positions"] == 100


def test_what_is_asked_for_twice_is_there_once(predict, config):
    done = predict(
        "--config", config(), "--recipe", "nf4", "--recipe", "bitsandbytes-nf4", "--json"
    )
    assert list(cells(done)) == ["bitsandbytes-nf4"]
    (model,) = json.loads(done.stdout)["models"]
    assert len(model["cells"]) == 1


def test_a_model_without_linear_layers_says_so(predict, tmp_path):
    """GPT-2's are transformers' Conv1D."""
    sizes = {"vocab_size": 64, "n_positions": 8, "n_embd": 32, "n_layer": 1, "n_head": 2}
    given = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_inner": 64, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(given))
    done = predict("--config", tmp_path, "--recipe", "hqq-w4g64", status=4)
    assert "layers: the model has no linear layer but its head" in done.stderr


def test_markdown(predict, config):
    done = predict("--config", config(), "--recipe", "nf4", "--markdown")
    head = "| recipe | kernel | disk MiB | memory MiB | rule of thumb | with cache | fits | run |"
    assert head in done.stdout
    assert "| bitsandbytes-nf4 | bitsandbytes" in done.stdout


def test_what_runs_took(predict, runs, tmp_path):
    """Of each case the newest run's, or else what costs.toml has."""
    (tmp_path / "fixtures/matrix.toml").write_text(
        '[[matrix]]\ncadence = "commit"\nmodels = ["llama-3.2-1b-shape"]\n'
        'recipes = ["hqq-w4g64"]\nquantize = true\n'
    )
    cell = "llama-3.2-1b-shape-hqq-w4g64"
    (tmp_path / "fixtures/costs.toml").write_text(f'[seconds]\n"quantize[{cell}]" = 40.0\n')
    asked = ("--model", "llama-3.2-1b-shape", "--recipe", "hqq-w4g64")
    assert cells(predict(*asked, "--json"))["hqq-w4g64"]["seconds"] == 40
    record, columns = runs.speed(2.0, f"decode[{cell}-b1]")
    told = {"model": "llama-3.2-1b-shape", "recipe": {"name": "hqq-w4g64"}, "seconds": 5.5}
    runs.save(({**record, **told}, columns))
    history = ("--history", str(runs.folder))
    assert cells(predict(*asked, *history, "--json"))["hqq-w4g64"]["seconds"] == 45.5
    assert " 46 s" in predict(*asked, *history).stdout or "45 s" in predict(*asked, *history).stdout


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("nf4", ["b-nf4"]),
        ("b-nf4", ["b-nf4"]),
        ("double", ["b-nf4-double"]),
        ("w4g64", ["h-w4g64", "l-w4g64"]),
        ("g32", ["h-w4g32"]),
        ("nothing", []),
    ],
)
def test_what_is_meant_by_a_part_of_a_name(asked, found):
    known = ["b-nf4", "b-nf4-double", "h-w4g64", "l-w4g64", "h-w4g64-x", "h-w4g32"]
    assert meant(asked, known) == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "w4g64"], "'w4g64' may be hqq-w4g64, gptq-w4g64, linear-w4g64; say which"),
        (["--recipe", "hqq-w4g63"], "--recipe: nothing is called 'hqq-w4g63'; did you mean"),
        (["--model", "llama-9"], "--model: nothing is called 'llama-9'; did you mean"),
    ],
)
def test_names_that_are_none_or_several(predict, arguments, said):
    assert f"ERROR: --{arguments[0].strip('-')}" in (done := predict(*arguments, status=4)).stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [("hqq-w3g64", 3), ("gguf-q4_k_m", 4), ("gguf-f16", 16), ("hqq-plan-all-finer", 8)],
)
def test_the_bits_that_a_rule_of_thumb_takes(recipe, bits):
    known = load_entries(DEFAULTS, recipe_types()).recipes
    assert nominal_bits(known[recipe]) == bits
    assert nominal_bits(known["hqq-plan-ends-finer"]) is None


# --- what cannot be predicted ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "hidden_size: this key is missing, and the shapes of llama follow"),
        (
            {"vocab_size": None, "num_hidden_layers": None},
            "vocab_size, num_hidden_layers: these keys are missing",
        ),
        ({"model_type": "mixtral"}, "num_local_experts: this key is missing"),
        (
            {"model_type": "qwen2_moe", "num_experts": 4},
            "moe_intermediate_size, shared_expert_intermediate_size: these keys are missing",
        ),
        ({"model_type": "qwen3_moe", "moe_intermediate_size": 64}, " num_experts: this key is"),
        (
            {"model_type": "deepseek_v3", "n_shared_experts": 1},
            "n_routed_experts, moe_intermediate_size: these keys are missing",
        ),
        ({"hidden_size": "abc"}, "'hidden_size' expected int, got str (value: 'abc')"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: expected a number above 0, got -1"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "(100) is not a multiple of the number"),
        (
            {
                "model_type": "t5",
                "d_model": 64,
                "num_layers": 2,
                "num_heads": 2,
                "d_ff": 64,
                "d_kv": 16,
            },
            "transformers has no ForCausalLM of t5",
        ),
        ({"model_type": None}, "the key `model_type` is missing, such as 'llama'"),
        ({"model_type": "lama"}, "model_type: transformers"),
        ({"model_type": "lama"}, "knows no 'lama'; did you mean 'llama'?"),
        ({"model_type": ["llama"]}, "model_type: expected a name such as 'llama', got ['llama']"),
        ({"architectures": 5}, "architectures: expected a list of names, got 5"),
        ({"architectures": "LlamaForCausalLM"}, "architectures: expected a list of names, got 'L"),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            "LlamaForTokenClassification: only models are known that end in ForCausalLM",
        ),
        ({"architectures": ["LlamaModel"]}, "without this key it is taken for LlamaForCausalLM"),
        ({"model_type": "gemma3", "architectures": None}, "text_config, vision_config: these keys"),
        ({"model_type": "mamba"}, "state_size: this key is missing"),
        ({"model_type": "gemma", "head_dim": None}, "head_dim: this key is missing"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: expected a number above 0, got 0"),
        ({"num_key_value_heads": -1}, "num_key_value_heads: expected a number above 0, got -1"),
        ({"head_dim": 0}, "head_dim: expected a number above 0, got 0"),
        ({"hidden_act": "foo"}, "hidden_act: transformers"),
        ({"hidden_act": "foo"}, "knows no 'foo'"),
        ({"rope_scaling": {"rope_type": "zzz"}}, "rope_parameters.rope_type: transformers"),
        ({"pad_token_id": 500}, "pad_token_id: 500 is outside of the vocabulary"),
        ({"dtype": "float61"}, " dtype: torch knows no 'float61'; did you mean 'float"),
        ({"torch_dtype": "zzz"}, " torch_dtype: torch knows no 'zzz'; there is bfloat16, "),
        (
            {"model_type": "llava", "text_config": {**TINY, "dtype": "flaot32"}},
            "text_config.dtype: torch knows no 'flaot32'; did you mean 'float32'?",
        ),
        (
            {"quantization_config": 5},
            "transformers can make no llama of it: AttributeError: 'int' object has no attribute",
        ),
        ({"text_config": {"hidden_size": 64}}, "transformers can make no llama of it: Attribute"),
        (
            {"model_type": "llava", "text_config": {**TINY, "head_dim": 0}},
            "text_config.head_dim: expected a number above 0, got 0",
        ),
    ],
)
def test_a_configuration_that_says_too_little(predict, config, changes, said):
    done = predict("--config", config(**changes), status=4)
    assert "ERROR: --config: " in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts"])
def test_experts_by_either_name(predict, config, key):
    """By hand: three matrices of 128 x 256 for each expert, and a row of the gate."""
    asked = ("--recipe", "nf4", "--memory", "8", "--json")
    numbers = []
    for count in (2, 3):
        path = config(model_type="mixtral", architectures=["MixtralForCausalLM"], **{key: count})
        (model,) = json.loads(predict("--config", path, *asked).stdout)["models"]
        numbers.append(model["parameters"])
    assert numbers[1] - numbers[0] == 2 * (3 * 128 * 256 + 128)


@pytest.mark.parametrize(("content", "said"), [("{", "it cannot be read"), ("[]", "no config")])
def test_a_file_that_is_none(predict, tmp_path, content, said):
    (tmp_path / "c.json").write_text(content)
    assert said in predict("--config", str(tmp_path / "c.json"), status=4).stderr
    assert "there is no config.json in it" in predict("--config", "fixtures", status=4).stderr


def test_a_recipe_that_cannot_be_packed(predict, config):
    """Named with what would work; what else was asked for is shown even so."""
    path = config(intermediate_size=192)
    done = predict("--config", path, "--recipe", "linear-w4g64", "--recipe", "nf4", "--memory", "1")
    assert "linear-w4g64" in done.stdout
    path = config(hidden_size=96, intermediate_size=160)
    asked = ("--recipe", "linear-w4g64", "--recipe", "nf4", "--memory", "1")
    done = predict("--config", path, *asked, status=4)
    assert "bitsandbytes-nf4" in done.stdout
    assert "group_size: 64 does not divide the 96 inputs of model.layers.0" in done.stderr
    assert "the nearest that works is" in done.stderr
    done = predict("--config", path)
    assert "cannot be made of it: " in done.stdout


def test_a_model_out_of_reach_is_left_out(predict, tmp_path, monkeypatch):
    from bitgate.sources import HubUnavailable, models

    def unreachable(source, label):
        raise HubUnavailable("the model hub cannot be reached")

    monkeypatch.setattr(models, "fetch_config_file", unreachable)
    (tmp_path / "fixtures/models.toml").write_text(
        '[model.far]\nfamily = "llama"\n[model.far.source]\nkind = "hub"\nrepo = "a/b"\n'
        f'revision = "{"0123456789" * 4}"\n'
        '[model.whole]\nfamily = "llama"\nformat = "gguf"\n'
        'source = { kind = "file", url = "https://example.org/x.gguf", '
        f'sha256 = "{"a" * 64}" }}\n'
    )
    asked = ("--model", "far", "--model", "whole", "--recipe", "nf4")
    done = predict(*asked, "--model", "llama-2-7b", "--json")
    content = json.loads(done.stdout)
    assert [model["model"] for model in content["models"]] == ["llama-2-7b"]
    assert [one["model"] for one in content["unknown"]] == ["far", "whole"]
    assert "WARNING: left out: model far: the model hub cannot be reached" in done.stderr
    assert "its shapes are in one file with its weights" in done.stderr
    assert "bitgate lock --model whole" in done.stderr
    predict(*asked, status=4)


def test_what_is_needed_is_shown_as_it_is_added_up():
    one = need(base=4 * 2**30, quantized=2**30, cache=0)
    assert one == Need({"base": 4 * 2**30, "quantized": 2**30})
    assert str(one) == "(base 4.00 + quantized 1.00) GiB x 1.15 headroom = 5.75 GiB"
    assert one.fits(one.total)
    assert not one.fits(one.total - 1)
