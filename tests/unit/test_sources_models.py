"""Models: bare shapes, directories, state dicts, and whether they fit."""

import gc
import hashlib
import pickle
import weakref

import pytest
import torch
from safetensors.torch import save_file

from bitgate.catalog import Model
from bitgate.sources import memory
from bitgate.sources.architecture import read_config
from bitgate.sources.errors import SourceError
from bitgate.sources.memory import check_fits, count_parameters
from bitgate.sources.models import fetch_model, fingerprint, load_model

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))


def model(source: dict, **changes) -> Model:
    return Model.model_validate({"name": "tiny", "family": "llama", "source": source, **changes})


def shape(seed: int = 0, **config) -> Model:
    return model({"kind": "shapes", "seed": seed}, format="shapes", config={**CONFIG, **config})


def logits(module):
    with torch.no_grad():
        return module(torch.arange(10)[None]).logits


def test_a_shape_is_the_same_for_a_seed_whatever_the_threads():
    threads = torch.get_num_threads()
    loaded = []
    for number in (1, 4):
        torch.set_num_threads(number)
        loaded.append(load_model(shape()))
    torch.set_num_threads(threads)
    first, second = (loaded_model.module.state_dict() for loaded_model in loaded)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = load_model(shape(seed=1)).module
    assert not torch.equal(other.lm_head.weight, loaded[0].module.lm_head.weight)


def test_a_shape_is_sane():
    loaded = load_model(shape())
    module = loaded.module
    assert loaded.tokenizer is None
    assert loaded.directory is None
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert module.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert bool((module.model.norm.weight == 1).all())
    assert bool(logits(module).isfinite().all())


def test_a_shape_in_bfloat16_is_the_rounded_one():
    exact = load_model(shape()).module.state_dict()
    rounded = load_model(shape(), dtype=torch.bfloat16).module.state_dict()
    assert all(torch.equal(exact[name].bfloat16(), rounded[name]) for name in exact)


def test_fingerprints_know_weights_not_names():
    same = fingerprint(shape(), torch.float32)
    assert fingerprint(shape().model_copy(update={"name": "other"}), torch.float32) == same
    assert fingerprint(shape(), torch.bfloat16) != same
    assert fingerprint(shape(seed=1), torch.float32) != same
    assert fingerprint(shape(hidden_size=64), torch.float32) != same


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "saved"
    load_model(shape()).module.save_pretrained(path)
    return path


def test_a_directory(directory):
    entry = model({"kind": "local", "path": directory})
    loaded = load_model(entry)
    assert loaded.directory == directory == fetch_model(entry)
    assert torch.equal(logits(loaded.module), logits(load_model(shape()).module))
    load_model(shape(seed=1)).module.save_pretrained(directory)
    assert fingerprint(entry, torch.float32) != loaded.fingerprint


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_state_dict(tmp_path, suffix):
    original = load_model(shape()).module
    state = {name: t for name, t in original.state_dict().items() if name != "lm_head.weight"}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"epoch": 1, "state_dict": state}, path)
    else:
        save_file(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = {"kind": "file", "url": str(path), "sha256": digest}
    loaded = load_model(model(source, format="state-dict", config=CONFIG))
    assert torch.equal(logits(loaded.module), logits(original))
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight
    assert not loaded.module.lm_head.weight.requires_grad


def test_garbage_collections_free_models():
    """What torch and transformers are made of is not looked at again; a model, in a cycle, is."""
    module = load_model(shape()).module
    module.itself = [module]
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


class Evil:
    def __reduce__(self):
        return print, ("this code must never run",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("weights.pth", pickle.dumps(Evil(), protocol=2), "weights_only"),
        ("weights.pth", b"garbage", "weights_only"),
        ("weights.safetensors", b"garbage", "no safetensors file"),
        ("weights.npz", b"", "are read from .safetensors, .pt, .pth, .bin only"),
    ],
)
def test_anything_else_is_refused(tmp_path, capsys, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    entry = model({"kind": "local", "path": path}, format="state-dict", config=CONFIG)
    with pytest.raises(SourceError, match=says) as raised:
        load_model(entry)
    assert str(raised.value).startswith("model tiny: ")
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "state", [{"a": torch.zeros(1)}, {"model.embed_tokens.weight": torch.zeros(1, 1)}]
)
def test_a_state_dict_of_another_model(tmp_path, state):
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    entry = model({"kind": "local", "path": path}, format="state-dict", config=CONFIG)
    with pytest.raises(SourceError, match="does not fit the model's config"):
        load_model(entry)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "transformers"}, "format: 'transformers' does not go with this source"),
        ({"format": "state-dict"}, "the key `config` is missing"),
        ({"format": "state-dict", "config": {"a": 1}}, "the key `model_type` is missing"),
        ({"format": "state-dict", "config": {"model_type": "no-such"}}, "no-such"),
        ({"format": "gguf"}, "cannot be read as GGUF"),
    ],
)
def test_bad_entries_say_which_key(tmp_path, changes, says):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(SourceError, match=says):
        load_model(model({"kind": "local", "path": path}, **changes))


def test_a_directory_without_a_config(tmp_path):
    with pytest.raises(SourceError, match="no usable config"):
        load_model(model({"kind": "local", "path": tmp_path}))


def test_what_does_not_fit_is_said_before_anything_is_read(directory, monkeypatch):
    (directory / "model.safetensors").write_bytes(b"would fail if read")
    parameters = count_parameters(read_config(shape(), None))
    monkeypatch.setattr(memory, "available_memory", lambda device: parameters * 4)
    with pytest.raises(SourceError, match="does not fit in the memory of cpu") as raised:
        load_model(model({"kind": "local", "path": directory}))
    assert f"{parameters:,} parameters x 4 bytes (torch.float32) x 1.15" in str(raised.value)


def test_tied_parameters_count_once():
    tied, untied = (
        count_parameters(read_config(shape(tie_word_embeddings=tie), None)) for tie in (True, False)
    )
    assert untied - tied == 64 * 32
    assert tied == sum(p.numel() for p in load_model(shape()).module.parameters())


def test_what_torch_keeps_of_freed_tensors_is_available(monkeypatch):
    for name, value in {"memory_reserved": 50, "memory_allocated": 20}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    assert memory.available_memory("cuda:0") == 100 + 30


def test_headroom_is_the_callers(monkeypatch):
    config = read_config(shape(), None)
    monkeypatch.setattr(memory, "available_memory", lambda device: count_parameters(config) * 5)
    check_fits(config, torch.float32, "cpu")
    with pytest.raises(SourceError):
        check_fits(config, torch.float32, "cpu", headroom=3)


CGROUP_2 = "memory.max", "memory.current", "memory.stat"
CGROUP_1 = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"


@pytest.mark.parametrize(
    ("files", "limit", "expected"),
    [
        (CGROUP_2, "1000", 700),
        (CGROUP_2, "max", None),
        (CGROUP_1, "1000", 650),
        (CGROUP_1, "9223372036854771712", None),
        ((), None, None),
    ],
)
def test_a_containers_limit_counts_without_what_the_kernel_takes_back(
    tmp_path, files, limit, expected
):
    said = f"{limit}\n", "400\n", "anon 200\ninactive_file 100\ntotal_inactive_file 50\n"
    if files == CGROUP_2:
        said = said[0], said[1], "anon 200\ninactive_file 100\n"
    for name, text in zip(files, said, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory._cgroup_available(tmp_path) == expected


@pytest.mark.parametrize("limit", [None, 4000])
def test_without_proc_only_a_containers_limit_is_known(monkeypatch, limit):
    monkeypatch.setattr("psutil.PROCFS_PATH", "/nonexistent")
    monkeypatch.setattr(memory, "_cgroup_available", lambda: limit)
    assert memory.available_memory("cpu") == limit


def test_where_free_memory_is_not_known_a_model_is_tried(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    check_fits(read_config(shape(), None), torch.float32, "cpu")
