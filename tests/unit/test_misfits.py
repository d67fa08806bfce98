"""Recipes that a model's layers cannot take: refused before anything runs, with what would work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import tomllib

import pytest

from bitgate import kernels
from bitgate.catalog import Plan, load
from bitgate.kernels.extra import Extra
from bitgate.quantize import LinearShape, ModelShapes, method, recipe_types
from bitgate.quantize.lock import Lock, LockedModel, Locks
from bitgate.quantize.misfits import misfits, nearest, refusal, written
from bitgate.sources import declared

pytest_plugins = ["pytester"]

#: as in SmolLM2: 576 inputs are no multiple of 128
LAYERS = tuple(
    LinearShape(f"model.layers.{number}.{name}", out, inputs, False)
    for number in range(3)
    for name, out, inputs in (("self_attn.q_proj", 576, 576), ("mlp.down_proj", 576, 1536))
)
SHAPES = ModelShapes((*LAYERS, LinearShape("lm_head", 1000, 576, False)), 5, 4, "lm_head", True)

MODELS = '[model.llama-free]\nfamily = "llama"\nformat = "shapes"\nsource = { kind = "shapes" }\n'
MODELS += '[model.llama-free.config]\nmodel_type = "llama"\n'
RECIPES = """
[[recipe]]
method = "hqq"
bits = 4
group_size = [64, 128]
kernel = "cpu-int4"

[[recipe]]
method = "hqq"
bits = 4
group_size = 64
layers = ["*.mpl.*"]
label = "mlp"

[[recipe]]
method = "hqq"
bits = 2
group_size = 4096
"""
MATRIX = """
[[matrix]]
cadence = "commit"
models = ["llama-free"]
recipes = ["hqq-w4g64", "hqq-w3g64"]
quantize = true

[[matrix]]
cadence = "{cadence}"
models = ["llama-free"]
recipes = {recipes}
quantize = true
"""
ONE = """
[[matrix]]
cadence = "commit"
models = ["llama-free"]
recipes = ["{}"]
quantize = true
"""
WRONG = '["hqq-w4g128-cpu-int4", "hqq-w4g64-mlp", "hqq-w2g4096", "hqq-w4g64-cpu-int4"]'


def hqq(**keys):
    return method("hqq").RECIPE(**{"bits": 4, "group_size": 64, **keys})


def found(recipe, known=(), device="cpu"):
    return [one.name for one in nearest(SHAPES, recipe, known, device)]


@pytest.fixture
def project(free_project, tmp_path):
    """Makes a project whose models are locked."""

    def make(folder=tmp_path, *, recipes=WRONG, cadence="commit", shapes=SHAPES):
        free_project(folder)
        fixtures = folder / "fixtures"
        (fixtures / "models.toml").write_text(MODELS)
        (fixtures / "recipes.toml").write_text(RECIPES)
        (fixtures / "matrix.toml").write_text(MATRIX.format(recipes=recipes, cadence=cadence))
        model = load(fixtures, recipe_types()).models["llama-free"]
        lock = Lock.read(fixtures)
        lock.models["llama-free"] = LockedModel.of(declared(model), shapes)
        lock.path.write_text(lock.text())
        return fixtures

    return make


def test_all_that_do_not_fit_are_found_with_what_does(project):
    fixtures = project()
    catalog = load(fixtures, recipe_types())
    wrong, unknown = misfits(catalog, "commit", Locks.read(fixtures), "cpu")
    assert not unknown
    said = {one.cell.recipe.name: one for one in wrong}
    assert list(said) == ["hqq-w4g128-cpu-int4", "hqq-w4g64-mlp", "hqq-w2g4096"]

    text = str(said["hqq-w4g128-cpu-int4"])
    for words in (
        f"{fixtures / 'matrix.toml'}: [[matrix]] number 2: llama-free cannot be quantized by",
        f"recipe hqq-w4g128-cpu-int4 ({fixtures / 'recipes.toml'}: [[recipe]] number 1)",
        "kernel cpu-int4 cannot take model.layers.0.self_attn.q_proj, [576, 576]",
        "the group size must divide the 576 inputs",
        'the nearest that works is "hqq-w4g128"',
        'or "hqq-w4g64-cpu-int4"',
    ):
        assert words in text
    assert "no linear layer matches '*.mpl.*'" in str(said["hqq-w4g64-mlp"])
    # 576 x 576 is no multiple of 4096: 256 is the largest group that divides it
    assert said["hqq-w2g4096"].nearest[0].name == "hqq-w2g256"


def test_what_is_said_to_write_is_that_recipe(project):
    fixtures = project(recipes='["hqq-w2g4096"]')
    catalog = load(fixtures, recipe_types())
    (one,), _ = misfits(catalog, "commit", Locks.read(fixtures), "cpu")
    block = "\n".join(line.strip() for line in str(one).splitlines()[2:])
    (fixtures / "recipes.toml").write_text(block)
    (fixtures / "matrix.toml").write_text(MATRIX.format(recipes='["hqq-w2g256"]', cadence="commit"))
    again = load(fixtures, recipe_types())
    assert again.recipes["hqq-w2g256"] == one.nearest[0]
    assert misfits(again, "commit", Locks.read(fixtures), "cpu") == ([], [])


#: none of these fits the layers of `ODD`
UNFIT = """
[[recipe]]
method = "hqq"
bits = 4
group_size = 4096
layers = ["*.mlp.*", "*_attn.*"]
label = "both"
solver = false

[[recipe]]
method = "hqq"
plan = ["coarse", "rule", "two"]

[[recipe]]
method = "hqq"
plan = "fine"
kernel = "cpu-int4"

[[recipe]]
method = "linear"
bits = 8
group_size = 160

[[recipe]]
method = "gptq"
bits = 4
group_size = 128
kernel = "cpu-int4"

[[recipe]]
method = "bitsandbytes"
type = "nf4"
double = true
kernel = "bitsandbytes-avx512bf16"
"""
PLANS = """
[plan.coarse]
bits = 4
group_size = 4096
rules = [{ layers = "*.down_proj", bits = 8 }]

[plan.rule]
bits = 4
group_size = 64
rules = [{ part = "mlp", bits = 8 }, { part = "mlp", group_size = 4096 }]

[plan.two]
bits = 4
group_size = 8192
rules = [{ part = "mlp", group_size = 4096 }]

[plan.fine]
bits = 4
group_size = 16
"""
#: 608 x 1568 is no multiple of 4096, 576 x 576 none of 8192; 1568 is one of 32
ODD = ModelShapes(
    (
        *(
            LinearShape(f"model.layers.0.{name}", out, inputs, False)
            for name, out, inputs in (("self_attn.q_proj", 576, 576), ("mlp.down_proj", 608, 1568))
        ),
        LinearShape("lm_head", 1000, 576, False),
    ),
    5,
    4,
    "lm_head",
    True,
)
OF_UNFIT = [
    "hqq-w4g4096-both-rtn",
    "hqq-plan-coarse",
    "hqq-plan-rule",
    "hqq-plan-two",
    "hqq-plan-fine-cpu-int4",
    "linear-w8g160",
    "gptq-w4g128-cpu-int4",
    "bitsandbytes-nf4-double-bitsandbytes-avx512bf16",
]


@pytest.mark.parametrize("name", OF_UNFIT)
def test_all_that_is_suggested_is_a_catalog_in_which_it_fits(project, name):
    """Read back from the words: the TOML to add, and what to write in a plan."""
    fixtures = project(recipes='["hqq-w4g64"]', shapes=ODD)
    (fixtures / "recipes.toml").write_text(UNFIT)
    (fixtures / "plans.toml").write_text(PLANS)
    (fixtures / "matrix.toml").write_text(ONE.format(name))
    catalog = load(fixtures, recipe_types())
    (one,), _ = misfits(catalog, "commit", Locks.read(fixtures), "cpu")
    assert one.nearest
    suggestions = re.split(r"\n  (?=or \"|the nearest)", str(one))[1:]
    assert len(suggestions) == len(one.nearest)
    for near, said in zip(one.nearest, suggestions, strict=True):
        first, _, block = said.partition("\n")
        (fixtures / "recipes.toml").write_text(textwrap.dedent(block) if block else UNFIT)
        plans = PLANS
        if edit := re.search(r"with group_size = (\d+) in place of ([\d and]+) \(", first):
            table = f"[plan.{near.plan.name}]"
            before, after = PLANS.split(table)
            body, bracket, others = after.partition("\n[plan")
            for old in edit[2].split(" and "):
                body = body.replace(f"group_size = {old}", f"group_size = {edit[1]}")
            plans = "".join((before, table, body, bracket, others))
        (fixtures / "plans.toml").write_text(plans)
        (fixtures / "matrix.toml").write_text(ONE.format(re.search('"(.*)"', first)[1]))
        again = load(fixtures, recipe_types())
        assert again.recipes[near.name] == near
        assert misfits(again, "commit", Locks.read(fixtures), "cpu") == ([], [])


def test_a_plan_is_near_to_itself_with_other_groups_only(project):
    fixtures = project(recipes='["hqq-w4g64"]', shapes=ODD)
    (fixtures / "recipes.toml").write_text(UNFIT)
    (fixtures / "plans.toml").write_text(PLANS)
    place = f"{fixtures / 'plans.toml'}: [plan."
    for name, words in (
        ("hqq-plan-coarse", f'"hqq-plan-coarse", with group_size = 256 in place of 4096 ({place}c'),
        ("hqq-plan-rule", f"= 256 in place of 4096 ({place}rule]: rule 2)"),
        ("hqq-plan-two", f"= 256 in place of 4096 and 8192 ({place}two], rule 1)"),
    ):
        (fixtures / "matrix.toml").write_text(ONE.format(name))
        ((one,), _) = misfits(load(fixtures, recipe_types()), "commit", Locks.read(fixtures), "cpu")
        assert words in str(one)
        assert len(one.nearest) == 1
    (fixtures / "plans.toml").write_text(PLANS.replace('part = "mlp", g', 'layers = "*x", g'))
    (one,), _ = misfits(load(fixtures, recipe_types()), "commit", Locks.read(fixtures), "cpu")
    assert "rule 1: layers: no linear layer matches '*x'" in str(one)
    assert str(one).endswith("\n  no other size of its groups works")


def test_nothing_beside_a_plan_is_near_to_a_recipe_without(project):
    plan = Plan(name="finer", bits=8, group_size=64)
    shapes = ModelShapes((LinearShape("a", 3, 5, False),), 0, 0, None, False)
    assert refusal(SHAPES, method("hqq").RECIPE(plan=plan), "cpu") is None
    assert list(nearest(shapes, hqq(), [method("hqq").RECIPE(plan=plan)], "cpu")) == []
    wrong = hqq(layers=("*.mpl.*",), label="mlp")
    assert found(wrong, [method("hqq").RECIPE(plan=plan)]) == []


def test_one_answer_only_of_which_group_size_is_nearest(project):
    fixtures = project(recipes='["hqq-w4g64"]')
    wrong = '[[recipe]]\nmethod = "linear"\nbits = 8\ngroup_size = 160\n'
    (fixtures / "recipes.toml").write_text(wrong)
    (fixtures / "matrix.toml").write_text(ONE.format("linear-w8g160"))
    (one,), _ = misfits(load(fixtures, recipe_types()), "commit", Locks.read(fixtures), "cpu")
    assert "all inputs are multiples of 192\n" in str(one)
    assert str(one).count("nearest") == 1


def test_bits_count_more_than_groups_and_groups_more_than_other_keys():
    wrong = hqq(bits=4, group_size=128, kernel="cpu-int4")
    assert found(wrong) == ["hqq-w4g128", "hqq-w4g64-cpu-int4"]
    # with the kernel's groups in the way only, another kernel is not proposed twice
    assert found(hqq(bits=4, group_size=4096)) == ["hqq-w4g256"]
    three = hqq(bits=3, group_size=64, kernel="cpu-int4")
    assert str(refusal(SHAPES, three, "cpu")).endswith("it holds 4-bit codes only")
    known = [hqq(bits=4, group_size=64, kernel="cpu-int4"), hqq(bits=2)]
    assert found(three, known) == ["hqq-w3g64", "hqq-w4g64-cpu-int4"]


def test_an_odd_number_of_groups():
    shapes = ModelShapes((LinearShape("a", 3, 64, False),), 0, 0, None, False)
    assert "3 rows cannot be packed 2 to a byte" in str(refusal(shapes, hqq(), "cpu"))
    assert [one.name for one in nearest(shapes, hqq(), (), "cpu")] == ["hqq-w4g32"]


def test_nothing_works():
    shapes = ModelShapes((LinearShape("a", 3, 5, False),), 0, 0, None, False)
    assert list(nearest(shapes, hqq(), [hqq(bits=8)], "cpu")) == []


def test_a_recipe_is_written_as_toml():
    recipe = hqq(layers=("*.mlp.*",), label="mlp", solver=False, axis=0)
    assert tomllib.loads("\n".join(written(recipe))) == {
        "method": "hqq",
        "bits": 4,
        "group_size": 64,
        "axis": 0,
        "solver": False,
        "layers": ["*.mlp.*"],
        "label": "mlp",
    }


def test_what_another_device_can_serve_is_left_to_the_run(project):
    fixtures = project(recipes='["hqq-w4g64-cpu-int4"]')
    catalog = load(fixtures, recipe_types())
    assert refusal(SHAPES, catalog.recipes["hqq-w4g64-cpu-int4"], "cuda")
    assert misfits(catalog, "commit", Locks.read(fixtures), "cuda") == ([], [])
    fixtures = project(recipes='["hqq-w4g128-cpu-int4"]')
    catalog = load(fixtures, recipe_types())
    (one,), _ = misfits(catalog, "commit", Locks.read(fixtures), "cuda")
    assert "the group size must divide the 576 inputs" in one.reason  # not that CUDA has no such


def test_a_kernel_that_runs_on_no_device_here_is_left_to_the_run(project, monkeypatch):
    """What it lacks, a library perhaps, says nothing about the layers."""
    monkeypatch.setitem(kernels.KERNELS, "cpu-int4", ("bitgate.kernels.cpu_int4", ()))
    fixtures = project(recipes='["hqq-w4g64-cpu-int4"]')
    catalog = load(fixtures, recipe_types())
    assert isinstance(refusal(SHAPES, hqq(kernel="cpu-int4"), "cpu"), kernels.NotHereError)
    assert misfits(catalog, "commit", Locks.read(fixtures), "cpu") == ([], [])


@pytest.mark.parametrize("installed", [True, False])
def test_a_kernel_is_asked_about_layers_where_its_library_is_absent(monkeypatch, installed):
    """Or a machine without a GPU would let pass what one with a GPU refuses."""
    extra = Extra("gpu", ("json",) if installed else ("no_such_module",))
    monkeypatch.setitem(kernels.EXTRAS, "gemlite", extra)
    for device in kernels.DEVICES:
        error = refusal(SHAPES, hqq(bits=3, kernel="gemlite"), device)
        assert "it holds codes of 8, 4, 2, 1 bits only" in str(error)
        assert not isinstance(error, kernels.NotHereError)
    # one that keeps the kernel is proposed even where that does not run
    known = [hqq(bits=4, group_size=64, kernel="gemlite")]
    assert found(hqq(bits=3, kernel="gemlite"), known) == ["hqq-w3g64", "hqq-w4g64-gemlite"]


def test_only_what_is_due(project):
    fixtures = project(cadence="weekly")
    catalog = load(fixtures, recipe_types())
    assert misfits(catalog, "nightly", Locks.read(fixtures), "cpu") == ([], [])
    assert len(misfits(catalog, "weekly", Locks.read(fixtures), "cpu")[0]) == 3


def a_checkpoint(fixtures, bits="", **config):
    """A recipe `checkpoint-mine` of the project in its matrix, and the files that it names."""
    (fixtures / "recipes.toml").write_text(
        f'[[recipe]]\nmethod = "checkpoint"\nlabel = "mine"\n{bits}\n'
        'source = { kind = "local", path = "../mine" }\n'
    )
    if config:
        mine = fixtures.parent / "mine"
        mine.mkdir()
        (mine / "config.json").write_text(json.dumps(config))
        (mine / "model.safetensors").write_bytes(b"not read")
    matrix = MATRIX.format(recipes='["checkpoint-mine"]', cadence="commit")
    (fixtures / "matrix.toml").write_text(matrix.replace(', "hqq-w3g64"', ""))
    return load(fixtures, recipe_types())


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    ("bits", "config", "reason"),
    [
        ("", {}, "source: {mine}: there is no such checkpoint"),
        ("bits = 8", {"quantization_config": NF4}, "bits: the checkpoint says 4, not 8"),
        (
            "bits = 4",
            {"model_type": "gpt2", "quantization_config": NF4},
            "{mine} is of another model than the base: model_type is gpt2, the base's is llama",
        ),
        ("bits = 4", {"model_type": "llama", "quantization_config": NF4}, None),
    ],
    ids=["missing", "bits", "another", "fits"],
)
def test_a_checkpoint_that_is_not_the_models(project, bits, config, reason):
    fixtures = project()
    catalog = a_checkpoint(fixtures, bits, **config)
    found, _ = misfits(catalog, "commit", Locks.read(fixtures), "cpu")
    said = [one for one in found if one.cell.recipe.name == "checkpoint-mine"]
    if reason is None:
        assert not said
        return
    (one,) = said
    assert one.reason == reason.format(mine=fixtures / "../mine")
    assert "recipe checkpoint-mine" in str(one)
    assert "number 1)" in str(one)
    assert str(one).endswith(one.reason)  # no other checkpoint is near


@pytest.mark.parametrize("kept", [True, False])
def test_a_checkpoint_beside_a_base_on_disk(project, tmp_path, kept):
    fixtures = project()
    (tmp_path / "base").mkdir()
    if kept:
        (tmp_path / "base/config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    (fixtures / "models.toml").write_text(
        '[model.llama-free]\nfamily = "llama"\nsource = { kind = "local", path = "../base" }\n'
    )
    catalog = a_checkpoint(fixtures, model_type="llama", hidden_size=32)
    found, _ = misfits(catalog, "commit", Locks.read(fixtures), "cpu")
    said = [one.reason for one in found if one.cell.recipe.name == "checkpoint-mine"]
    assert len(said) == kept
    assert all("hidden_size is 32, the base's is 64" in reason for reason in said)


def test_pytest_refuses_a_checkpoint_that_is_not_there(pytester, project):
    a_checkpoint(project(pytester.path))
    done = pytester.runpytest_subprocess("bench", "--collect-only", "-p", "no:cacheprovider")
    assert done.ret == 4
    assert "there is no such checkpoint" in done.stderr.str()


def test_looking_at_checkpoints_imports_nothing_heavy(project):
    fixtures = project()
    a_checkpoint(fixtures, "bits = 4", model_type="gpt2", quantization_config=NF4)
    code = f"""
import sys
from pathlib import Path
from bitgate.catalog import load
from bitgate.quantize import recipe_types
from bitgate.quantize.lock import Locks
from bitgate.quantize.misfits import misfits
fixtures = Path({str(fixtures)!r})
found, _ = misfits(load(fixtures, recipe_types()), "commit", Locks.read(fixtures), "cpu")
assert any("model_type is gpt2" in one.reason for one in found)
print(sorted({{"torch", "numpy", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("workers", [("-n", "2"), ("--collect-only", "-q")])
def test_pytest_refuses_all_of_them_at_once(pytester, project, workers):
    project(pytester.path)
    done = pytester.runpytest_subprocess("bench", *workers, "-p", "no:cacheprovider")
    assert done.ret == 4
    said = done.stderr.str()
    assert said.count("cannot be quantized by recipe") == 3
    assert '"hqq-w4g64-cpu-int4"' in said
    assert "Traceback" not in said + done.stdout.str()
    assert "passed" not in done.stdout.str()


def test_pytest_says_once_whose_shapes_it_does_not_know(pytester, project):
    fixtures = project(pytester.path)
    (fixtures / "models.toml").write_text(MODELS + "hidden_size = 64\n")
    done = pytester.runpytest_subprocess("bench", "-k", "hqq-w4g64-0", "-p", "no:cacheprovider")
    assert done.stdout.str().count("shapes of llama-free") == 1
    assert done.ret == 5, done.stdout.str()


def test_a_damaged_lock_is_a_usage_error(pytester, project):
    fixtures = project(pytester.path, recipes='["hqq-w8g64"]')
    (fixtures / "shapes.lock.json").write_text("{")
    done = pytester.runpytest_subprocess("bench", "-p", "no:cacheprovider")
    assert done.ret == 4
    assert "shapes.lock.json cannot be used" in done.stderr.str()
