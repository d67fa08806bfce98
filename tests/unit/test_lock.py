"""`bitgate lock`: shapes of every model in a committed file, and when that is out of date."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bitgate.catalog import DEFAULTS, Model, load_entries
from bitgate.cli import main
from bitgate.quantize import LinearShape, ModelShapes, recipe_types, shapes_of
from bitgate.quantize.folding import fold, fold_tensors, unfold, unfold_tensors
from bitgate.quantize.lock import FILE, Lock, LockedModel, LockError, Locks
from bitgate.quantize.shapes import ConvolutionShape, Patches, TensorShape
from bitgate.sources import declared

CONFIG = """
model_type = "llama"
architectures = ["LlamaForCausalLM"]
vocab_size = 32
hidden_size = 16
intermediate_size = 48
num_hidden_layers = 3
num_attention_heads = 2
num_key_value_heads = 1
tie_word_embeddings = true
rope_scaling = { rope_type = "linear", factor = 2.0 }
"""
MODELS = f"""
[model.tiny]
family = "llama"
format = "shapes"
source = {{ kind = "shapes" }}

[model.tiny.config]
{CONFIG}
"""
DIRECTORY = '[model.there]\nfamily = "llama"\nsource = { kind = "local", path = "there" }\n'


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixtures").mkdir()
    (tmp_path / "fixtures/models.toml").write_text(MODELS)

    def run(*arguments):
        return CliRunner().invoke(main, ["lock", *arguments])

    return run


def models(folder):
    return load_entries(folder, recipe_types()).models


# --- folding ---------------------------------------------------------------------------------


def layers(*names, shape=(4, 8)):
    return [LinearShape(name, *shape, bias=False) for name in names]


def test_equal_blocks_are_written_once():
    found = fold(layers(*(f"m.{n}.{part}" for n in range(12) for part in ("a", "b.c")), "head"))
    assert found == {"m.[0-11]": {"a": "4x8", "b.c": "4x8"}, "head": "4x8"}


def test_blocks_that_differ_or_do_not_follow_stay_apart():
    odd = [LinearShape("m.2.a", 4, 8, bias=True)]
    found = fold([*layers("m.0.a", "m.1.a"), *odd, *layers("m.4.a")])
    assert found == {
        "m.[0-1]": {"a": "4x8"},
        "m.[2-2]": {"a": "4x8 bias"},
        "m.[4-4]": {"a": "4x8"},
    }


def test_experts_within_blocks_are_folded_too():
    names = [f"m.{n}.experts.{e}.{w}" for n in range(4) for e in range(8) for w in ("w1", "w2")]
    assert fold(layers(*names)) == {
        "m.[0-3]": {"experts.[0-7]": {"w1": "4x8", "w2": "4x8"}},
    }


NAME = st.lists(st.sampled_from(["a", "b", "0", "1", "2", "10", "x[0-1]"]), min_size=1, max_size=5)


@st.composite
def models_layers(draw):
    """Names as `named_modules` gives them: depth first, none twice, none within another."""
    paths = sorted({tuple(path) for path in draw(st.lists(NAME, min_size=1, max_size=30))})
    leaves = [a for a, b in pairwise([*paths, ("~",)]) if b[: len(a)] != a]
    shape = st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans())
    return [LinearShape(".".join(leaf), *draw(shape)) for leaf in leaves]


@given(models_layers())
def test_what_was_folded_unfolds_to_the_same_in_the_same_order(linears):
    assert list(unfold(json.loads(json.dumps(fold(linears))))) == linears


@pytest.mark.parametrize("folded", [{"a": "4x"}, {"a": 3}, {"a.[0-x]": {"b": "4x8"}}, {"a": {}}])
def test_what_fold_does_not_write_is_refused(folded):
    with pytest.raises(ValueError):
        list(unfold(folded))


PATCHES = Patches((3, 3), (2, 2), (1, 1), (1, 1), 8)


def convolution(patches):
    return ConvolutionShape("c", 8, 27, bias=True, place=0, patches=patches)


def test_everything_of_the_shapes_comes_back():
    convolution = ConvolutionShape("c", 8, 27, True, 0, PATCHES, norm="n", norm_elements=32)
    shapes = ModelShapes(tuple(layers("a.0.b", "a.1.b")), 7, 4, None, False, (convolution,))
    assert LockedModel.of("x", shapes).shapes() == shapes
    shapes = replace(shapes, model_type="mistral", fixed=8, buffers=3)
    assert LockedModel.of("x", shapes).shapes() == shapes


PAIR = st.tuples(st.integers(1, 99), st.integers(1, 99))
PADDING = st.tuples(st.integers(0, 9), st.integers(0, 9)) | st.sampled_from(["same", "valid"])


@given(st.builds(Patches, PAIR, PAIR, PADDING, PAIR, st.integers(1, 999)))
def test_patches_are_the_same_again(patches):
    shapes = ModelShapes((), 7, 4, None, False, (convolution(patches),))
    written = LockedModel.of("x", shapes).model_dump_json()
    assert LockedModel.model_validate_json(written).shapes() == shapes


def test_patches_that_cannot_be_read():
    written = LockedModel.of("x", ModelShapes((), 7, 4, None, False, (convolution(PATCHES),)))
    written.convolutions[0]["patches"] = "3x3"
    with pytest.raises(ValueError, match="'3x3' is not as '3x3 stride 1x1"):
        written.shapes()


def test_what_else_a_file_holds_comes_back_and_old_locks_do_not_say_it(llama):
    shapes = shapes_of(llama(attention_bias=True))
    again = LockedModel.model_validate(json.loads(LockedModel.of("x", shapes).model_dump_json()))
    assert again.shapes() == shapes
    assert again.shapes().file.config == shapes.file.config > 500
    assert [(one.numbers, one.window) for one in again.shapes().cache] == [(256, None)]
    assert again.shapes().positions == shapes.positions > 0
    old = LockedModel.of("x", replace(shapes, file=None, cache=None))
    assert old.shapes().file is old.shapes().cache is None


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3)])
@pytest.mark.parametrize("integer", [None, "I64"])
def test_other_tensors_are_folded_too(shape, integer):
    tensors = [TensorShape(f"m.{n}.norm.count", shape, integer) for n in range(3)]
    folded = json.loads(json.dumps(fold_tensors(tensors)))
    assert list(folded) == ["m.[0-2]"]
    assert list(unfold_tensors(folded)) == tensors


def test_a_tensor_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'3xa' is no shape"):
        list(unfold_tensors({"a": "3xa"}))


def test_a_lock_without_the_architecture_is_still_read(tmp_path):
    """As they were written before."""
    shapes = ModelShapes(tuple(layers("a.0.b", "a.1.b")), 7, 4, None, False)
    found = Lock.read(tmp_path)
    found.models["m"] = LockedModel.of("x", shapes)
    assert "model_type" not in found.text()
    found.path.write_text(found.text())
    assert Lock.read(tmp_path).models["m"].shapes() == shapes


# --- what a model's shapes follow from -------------------------------------------------------


def model(**changes):
    fields = {"name": "m", "family": "llama", "source": {"kind": "shapes"}, "config": {"a": 1}}
    return Model.model_validate({**fields, **changes})


def test_a_model_is_known_by_what_its_shapes_follow_from():
    hub = {"kind": "hub", "repo": "o/n", "revision": "a" * 40}
    file = {"kind": "file", "url": "https://x/y.gguf", "sha256": "a" * 64}
    assert declared(model()) == declared(model(name="other", source={"kind": "shapes", "seed": 5}))
    assert declared(model()) != declared(model(config={"a": 2}))
    moved = {**hub, "revision": "b" * 40}
    assert declared(model(source=hub)) != declared(model(source=moved))
    elsewhere = {**file, "url": "https://mirror/y.gguf"}
    one, other = (model(source=source, format="gguf") for source in (file, elsewhere))
    assert declared(one) == declared(other)
    assert declared(one) != declared(model(source={**file, "sha256": "b" * 64}, format="gguf"))
    pinned = {"source": file, "format": "state-dict"}
    assert declared(model(**pinned)) != declared(model(**pinned, config={"a": 2}))


def test_a_local_model_by_its_files(tmp_path):
    place = {"kind": "local", "path": tmp_path / "there"}
    assert declared(model(source=place)) is None
    (tmp_path / "there").mkdir()
    assert declared(model(source=place)) is None
    config = tmp_path / "there/config.json"
    config.write_text("{}")
    before = declared(model(source=place))
    (tmp_path / "there/model.safetensors").write_text("other weights, same shapes")
    assert declared(model(source=place)) == before
    config.write_text('{"hidden_size": 64}')
    assert declared(model(source=place)) not in (before, None)

    gguf = {"source": {"kind": "local", "path": tmp_path / "m.gguf"}, "format": "gguf"}
    assert declared(model(**gguf)) is None
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    before = declared(model(**gguf))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(101))
    assert declared(model(**gguf)) not in (before, None)


def test_reading_a_config_leaves_the_catalog_as_it_was(lock, tmp_path):
    """transformers adds defaults to nested tables: the model would then be another one."""
    from bitgate.sources import fetch_config, fingerprint

    tiny = models(tmp_path / "fixtures")["tiny"]
    before = declared(tiny), fingerprint(tiny, "float32")
    fetch_config(tiny)
    assert (declared(tiny), fingerprint(tiny, "float32")) == before


# --- the command -----------------------------------------------------------------------------


def test_the_lock_has_the_shapes_of_the_loaded_model(lock, tmp_path):
    from bitgate.sources import load_model

    done = lock()
    assert done.exit_code == 0, done.output
    assert "tiny: new" in done.output
    tiny = models(tmp_path / "fixtures")["tiny"]
    found = Locks.read(tmp_path / "fixtures").shapes(tiny)
    assert found == shapes_of(load_model(tiny).module)
    assert found.tied
    written = json.loads((tmp_path / "fixtures" / FILE).read_text())
    assert list(written["models"]["tiny"]["linears"]) == ["model.layers.[0-2]", "lm_head"]


def test_only_what_bitgate_has_not_locked_itself(lock, tmp_path):
    lock()
    assert list(Lock.read(tmp_path / "fixtures").models) == ["tiny"]
    own = MODELS.replace("model.tiny", 'model."llama-3.2-1b-shape"')
    (tmp_path / "fixtures/models.toml").write_text(MODELS + own)
    assert "llama-3.2-1b-shape is not in it" in lock("--check").output
    lock()
    assert list(Lock.read(tmp_path / "fixtures").models) == ["llama-3.2-1b-shape", "tiny"]
    ours = models(tmp_path / "fixtures")["llama-3.2-1b-shape"]
    assert len(Locks.read(tmp_path / "fixtures").shapes(ours).linears) == 22


def test_check(lock, tmp_path):
    done = lock("--check")
    assert (done.exit_code, "tiny is not in it" in done.output) == (1, True)
    lock()
    done = lock("--check")
    assert done.exit_code == 0, done.output
    file = tmp_path / "fixtures" / FILE
    before = file.read_text()
    path = tmp_path / "fixtures/models.toml"
    path.write_text(MODELS.replace("hidden_size = 16", "hidden_size = 32"))
    done = lock("--check")
    assert (done.exit_code, "tiny is another one" in done.output) == (1, True)
    assert file.read_text() == before
    assert Locks.read(tmp_path / "fixtures").shapes(models(tmp_path / "fixtures")["tiny"]) is None
    path.write_text("")
    assert "tiny is no model any more" in lock("--check").output
    lock()
    assert Lock.read(tmp_path / "fixtures").models == {}


def test_check_loads_nothing(lock, tmp_path):
    import subprocess
    import sys

    lock()
    code = (
        "from bitgate.cli import main; main(['lock', '--check'], standalone_mode=False)\n"
        "import sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_a_model_out_of_reach_keeps_its_entry_and_is_named(lock, tmp_path):
    (tmp_path / "fixtures/models.toml").write_text(MODELS + DIRECTORY)
    there = tmp_path / "fixtures/there"
    there.mkdir()
    config = models(tmp_path / "fixtures")["tiny"].config
    (there / "config.json").write_text(json.dumps(config))
    assert "there: new" in lock().output
    before = Lock.read(tmp_path / "fixtures").models
    (there / "config.json").unlink()
    there.rmdir()
    done = lock()
    assert done.exit_code == 0
    assert "WARNING: there keeps its entry: " in done.output
    assert Lock.read(tmp_path / "fixtures").models == before
    done = lock("--check")
    assert done.exit_code == 0
    assert "there: its source is not on this machine" in done.output
    (tmp_path / "fixtures" / FILE).unlink()
    assert "WARNING: there has no entry: " in lock().output
    assert list(Lock.read(tmp_path / "fixtures").models) == ["tiny"]


def test_one_model_only(lock, tmp_path):
    second = MODELS.replace("model.tiny", "model.second")
    (tmp_path / "fixtures/models.toml").write_text(MODELS + second)
    lock()
    changed = (MODELS + second).replace("hidden_size = 16", "hidden_size = 32")
    (tmp_path / "fixtures/models.toml").write_text(changed)
    before = Lock.read(tmp_path / "fixtures").models
    lock("--model", "second")
    after = Lock.read(tmp_path / "fixtures").models
    assert after["tiny"] == before["tiny"]
    assert after["second"] != before["second"]
    done = lock("--model", "secnd")
    assert (done.exit_code, "did you mean 'second'?" in done.output) == (4, True)


DAMAGED = {
    "cut off": lambda text: text[:40],
    "merged by hand": lambda text: text.replace('"tied": true', "<<<<<<<"),
    "later": lambda text: text.replace('"schema": 1', '"schema": 2'),
    "lacking": lambda text: text.replace('"tied": true,', ""),
    "odd": lambda text: text.replace('"16x16"', '"16 by 16"'),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_named_with_the_remedy(lock, tmp_path, how):
    lock()
    file = tmp_path / "fixtures" / FILE
    text = DAMAGED[how](file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(LockError, match=rf"{FILE}.*bitgate lock"):
        Locks.read(tmp_path / "fixtures").shapes(models(tmp_path / "fixtures")["tiny"])


def test_the_lock_that_is_shipped():
    """Is current, and of the models on the meta device as they are made here."""
    from bitgate.sources import fetch_config
    from bitgate.sources.architecture import skeleton

    done = CliRunner().invoke(main, ["lock", "--check", "--catalog", str(DEFAULTS)])
    assert done.exit_code == 0, done.output
    shipped, lock = models(DEFAULTS), Lock.read(DEFAULTS)
    for name in ("llama-3.2-1b-shape", "llama-3.2-1b-2-layers"):
        assert lock.models[name].shapes() == shapes_of(skeleton(fetch_config(shipped[name])))
