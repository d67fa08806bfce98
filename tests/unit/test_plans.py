"""Plans: which layers a rule is for, what is wrong with one, models served by several kernels."""

from __future__ import annotations

import json
import re
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgate import quantize
from bitgate.catalog import CatalogError, Plan, Rule, load, load_entries, part_of
from bitgate.kernels.int4_linear import Int4Linear
from bitgate.kernels.int4x2_linear import Int4x2Linear
from bitgate.kernels.served import tensor_bytes
from bitgate.quantize import LinearShape, ModelShapes, QuantizeError, shapes_of
from bitgate.quantize import hqq as method
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.hqq_sizes import groupings
from bitgate.quantize.plans import HEAD, matches, part_in_block, plan_of, units, widths

LLAMA = [
    f"model.layers.{block}.{part}"
    for block in range(8)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]
DEIT = [
    f"blocks.{block}.{part}"
    for block in range(12)
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]


def shapes(names, head="lm_head"):
    return ModelShapes(
        linears=tuple(
            LinearShape(name, 64, 64, False) for name in [*names, *([head] * bool(head))]
        ),
        others=0,
        transient=0,
        head=head,
        tied=False,
    )


def plan(*rules, name="p", bits=4, group_size=64, **keys):
    made = tuple(Rule.model_validate(rule) for rule in rules)
    return Plan(name=name, bits=bits, group_size=group_size, rules=made, **keys)


def blocks_matched(blocks, count=8, names=LLAMA):
    rule = Rule.model_validate({"blocks": blocks, "bits": 8})
    found = matches(rule, shapes(names), "here")
    return sorted({int(re.search(r"\.(\d+)\.", name)[1]) for name in found})


@pytest.mark.parametrize(
    ("blocks", "matched"),
    [
        (0, [0]),
        (-1, [7]),
        ([0, -1], [0, 7]),
        ("first", [0]),
        ("last", [7]),
        ("first quarter", [0, 1]),
        ("middle", [2, 3, 4, 5]),
        ("last quarter", [6, 7]),
        ("3/8", [2]),
        ("2/3", [2, 3, 4]),
        (["first quarter", 3, "last"], [0, 1, 3, 7]),
    ],
    ids=str,
)
def test_positions(blocks, matched):
    assert blocks_matched(blocks) == matched


@given(st.integers(1, 40), st.integers(1, 12))
def test_parts_of_the_depth_are_a_partition(count, of):
    """Whatever the depth, each block is in exactly one of the parts."""
    names = [f"layers.{block}.fc" for block in range(count)]
    seen = []
    for part in range(1, of + 1):
        try:
            seen += blocks_matched(f"{part}/{of}", names=[f"m.{name}" for name in names])
        except QuantizeError:
            assert of > count
    assert seen == list(range(count))


def test_the_middle_is_what_the_quarters_leave():
    quarters = ("first quarter", "middle", "last quarter")
    for count in range(4, 40):
        names = [f"m.layers.{block}.fc" for block in range(count)]
        first, middle, last = (blocks_matched(part, names=names) for part in quarters)
        assert first + middle + last == list(range(count))


def test_attention_and_mlp_of_a_llama_and_a_deit():
    assert {part_in_block(name) for name in LLAMA if "self_attn" in name} == {"attention"}
    assert {part_in_block(name) for name in LLAMA if "mlp" in name} == {"mlp"}
    assert {part_in_block(name) for name in DEIT if ".attn." in name} == {"attention"}
    assert {part_in_block(name) for name in DEIT if ".mlp." in name} == {"mlp"}
    assert part_in_block("encoder.layer.0.attention.output.dense") == "attention"
    assert part_in_block("encoder.layer.0.output.dense") == "mlp"
    assert part_in_block("lm_head") is None


def test_a_later_rule_wins_key_by_key():
    found = widths(
        plan(
            {"part": "attention", "bits": 8, "group_size": 32},
            {"blocks": "first", "keep": True},
            {"layers": "*.q_proj", "bits": 2},
            {"layers": ["*.1.mlp.up_proj", "*.2.mlp.up_proj"], "keep": True},
            {"layers": "*.2.*", "blocks": "first quarter", "part": "mlp", "bits": 3}
            | {"blocks": 2},
        ),
        shapes(LLAMA),
    )
    assert found["model.layers.0.self_attn.q_proj"] == (2, 32)  # given bits again after all
    assert "model.layers.0.self_attn.o_proj" not in found
    assert found["model.layers.1.self_attn.o_proj"] == (8, 32)
    assert "model.layers.1.mlp.up_proj" not in found
    assert found["model.layers.2.mlp.up_proj"] == (3, 64)
    assert found["model.layers.3.mlp.up_proj"] == (4, 64)
    assert "lm_head" not in found
    assert widths(plan(head=8), shapes(LLAMA))["lm_head"] == (8, 64)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            plan({"bits": 8, "part": "mlp"}, {"layers": "*.v_proj", "bits": 8}),
            "plan p: rule 2: layers: no linear layer matches '*.v_proj'; there is model.layers.0.",
        ),
        (
            plan({"layers": ["*.q_proj", "*.k_proj"], "bits": 8}),
            "plan p: rule 1: layers: no linear layer matches '*.k_proj'",
        ),
        (plan({"blocks": 8, "bits": 8}), "rule 1: blocks: 8 is none of the model's 8 blocks"),
        (plan({"blocks": -9, "bits": 8}), "rule 1: blocks: -9 is none of the model's 8 blocks"),
        (plan({"blocks": ["first", "2/9"], "bits": 8}), None),
        (plan({"blocks": "1/9", "bits": 8}), "'1/9' is none of the model's 8 blocks"),
        (
            plan({"part": "mlp", "layers": "*.q_proj", "bits": 8}),
            "rule 1: layers and part: no layer is in all of them",
        ),
        (plan({"layers": "*", "keep": True}), "rules: they leave every layer unquantized"),
    ],
    ids=str,
)
def test_what_matches_nothing_is_an_error(made, message):
    if message is None:
        assert widths(made, shapes(LLAMA))
        return
    with pytest.raises(QuantizeError, match=re.escape(message)):
        widths(made, shapes(LLAMA))


def test_a_head_that_is_not_there():
    with pytest.raises(QuantizeError, match="plan p: head: the model has no linear output head"):
        widths(plan(head=8), shapes(DEIT, head=None))


# --- read from TOML --------------------------------------------------------------------------

TEXT = """
[dataset.{name}]
format = "plain"
source = {{ kind = "local", path = "{path}" }}
"""
MATRIX = """
[[matrix]]
cadence = "commit"
models = ["m"]
recipes = ["hqq-plan-mine"]
perplexity = ["scored"]
"""
MODEL = """
[model.m]
family = "llama"
source = { kind = "local", path = "m" }
"""


@pytest.fixture
def project(tmp_path):
    def write(plans, recipe='[[recipe]]\nmethod = "hqq"\nplan = "mine"', seen="b"):
        (tmp_path / "plans.toml").write_text(plans)
        (tmp_path / "recipes.toml").write_text(recipe)
        (tmp_path / "matrix.toml").write_text(MATRIX)
        (tmp_path / "models.toml").write_text(MODEL)
        texts = TEXT.format(name="scored", path="a") + TEXT.format(name="seen", path=seen)
        (tmp_path / "datasets.toml").write_text(texts)
        return tmp_path

    return write


MINE = "[plan.mine]\nbits = 4\ngroup_size = 64\n"


def test_a_recipe_names_its_plan(project):
    folder = project(MINE + 'rules = [{ part = "attention", bits = 8 }]')
    recipe = load(folder, quantize.recipe_types()).recipes["hqq-plan-mine"]
    assert recipe.plan.rules == (Rule(part="attention", bits=8),)
    assert recipe.bits is recipe.group_size is None  # so no gate for 4 bits means it
    message = r"plans\.toml: \[plan\.mine\]: rule 1: part: no linear layer of a block is attention"
    with pytest.raises(QuantizeError, match=message):
        groupings(shapes(["m.layers.0.fc"]), recipe)


def test_a_text_that_it_was_searched_on_is_not_scored(project):
    load(project(MINE + 'searched_on = "seen"'), quantize.recipe_types())
    folder = project(MINE + 'searched_on = "seen"', seen="a")
    with pytest.raises(CatalogError, match="hqq-plan-mine is calibrated with seen, which may draw"):
        load(folder, quantize.recipe_types())


@pytest.mark.parametrize(
    ("plans", "recipe", "message"),
    [
        (MINE, 'plan = "mime"', r"recipes.toml: .* 1: plan: nothing .*'mime'; did you mean 'mine'"),
        (MINE, 'plan = "mine"\nbits = 4', "number 1: bits: leave it out, the plan says"),
        (MINE, 'plan = "mine"\nhead = 4', "number 1: head: leave it out, the plan says"),
        (MINE, 'plan = "mine"\naxis = 0', "number 1: axis: leave it out, the plan says"),
        (MINE, 'plan = "mine"\nfirst_blocks = 1', "number 1: first_blocks: leave it out"),
        (MINE, "group_size = 64", "number 1: bits: this key is missing; `plan` would stand"),
        (MINE, "bits = 4", "number 1: group_size: this key is missing"),
        (
            MINE + 'rules = [{ part = "mlp", bits = 5 }]',
            'plan = "mine"',
            r"plans.toml: \[plan.mine\]: rule 1: bits: hqq has no 5 bits; there is 8, 4, 3, 2, 1",
        ),
        (MINE + "head = 6", 'plan = "mine"', r"\[plan.mine\]: head: hqq has no 6 bits"),
        (
            MINE + 'rules = [{ part = "mlp", group_size = 12 }]',
            'plan = "mine"',
            r"\[plan.mine\]: rule 1: group_size: 12 is no multiple of 8",
        ),
        (
            MINE + 'rules = [{ part = "mlp", bits = 8 }, { blocks = "third", bits = 8 }]',
            "",
            r"plans.toml: \[plan.mine\]: rule 2: blocks: no position is called 'third'; there is f",
        ),
        (MINE + 'rules = [{ blocks = "5/4", bits = 8 }]', "", "rule 1: blocks: no position is"),
        (MINE + "rules = [{ blocks = [], bits = 8 }]", "", "blocks: an empty list matches nothing"),
        (MINE + 'rules = [{ part = "mlp" }]', "", r"\[plan.mine\]: rule 1: the rule does nothing"),
        (MINE + "rules = [{ bits = 8 }]", "", "rule 1: the rule names no layers"),
        (
            MINE + 'rules = [{ part = "mlp", bits = 8, keep = true }]',
            "",
            "rule 1: keep: what is left unquantized has no bits",
        ),
        (MINE + 'rules = [{ prat = "mlp", bits = 8 }]', "", "rule 1: prat: unknown key"),
        (MINE + 'rules = [{ part = "mpl", bits = 8 }]', "", "rule 1: part: .*'mpl'"),
        (MINE + 'rules = [{ part = "mlp", bits = true }]', "", "rule 1: bits: "),
        (MINE + 'searched_on = "sen"', "", r"\[plan.mine\]: searched_on: nothing .* 'seen'"),
        ("[plan.mine]\nbits = 4", "", r"\[plan.mine\]: group_size: this key is missing"),
        (MINE + 'rules = "all"', "", r"\[plan.mine\]: rules: expected a list of rules"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(project, plans, recipe, message):
    with pytest.raises(CatalogError, match=message):
        load(project(plans, f'[[recipe]]\nmethod = "hqq"\n{recipe}'), quantize.recipe_types())


def test_the_plans_that_come_along_fit_a_llama_and_a_deit(tmp_path):
    catalog = load_entries(tmp_path, quantize.recipe_types())
    assert len(catalog.plans) >= 4
    for made in catalog.plans.values():
        assert f"hqq-plan-{made.name}" in catalog.recipes
        assert widths(made, shapes(LLAMA))
        assert widths(made.model_copy(update={"head": None}), shapes(DEIT, head=None))


def test_part_of_refuses_what_is_none():
    for wrong in ("0/4", "5/4", "1/0", "x", "", "1/4 "):
        with pytest.raises(ValueError, match="no position is called"):
            part_of(wrong)


# --- quantized and served --------------------------------------------------------------------

MIXED = (
    {"part": "attention", "bits": 8},
    {"layers": "*.0.self_attn.v_proj", "bits": 3},
    {"layers": "*.1.mlp.down_proj", "keep": True},
)


def quantized_by(made, base, loaded, **keys):
    recipe = HqqRecipe(plan=made, solver=False, **keys)
    return method.quantize(loaded(base), recipe, next(base.parameters()).dtype)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", [None, 8])
@pytest.mark.parametrize(
    ("rules", "kernel"),
    [
        (MIXED, "cpu-int4+cpu-int4x2+dequantize"),
        (MIXED[::2], "cpu-int4+cpu-int4x2"),
        (MIXED[2:], "cpu-int4"),
    ],
    ids=["three", "two", "one"],
)
def test_sizes_files_and_kernels(llama, loaded, execution, tmp_path, rules, kernel, head, tied):
    base = llama(tie_word_embeddings=tied)
    quantized = quantized_by(plan(*rules, head=head), base, loaded)
    shapes = shapes_of(base)
    chosen = method.kernel(shapes, quantized.recipe, "cpu")
    if head and kernel == "cpu-int4":
        kernel = "cpu-int4+cpu-int4x2"
    assert chosen == kernel
    predicted = method.predicted_bytes(shapes, quantized.recipe, chosen, 4)
    served = quantized.serve(execution(chosen))
    assert served.packed_layers == served.expected_layers == len(quantized.layers)
    assert served.expected_layers == 13 + bool(head)
    assert served.memory_bytes() == tensor_bytes(served.module) == predicted.memory
    kinds = {name: type(part) for name, part in served.module.named_modules()}
    assert kinds["model.layers.1.mlp.down_proj"] is torch.nn.Linear
    assert kinds["model.layers.0.mlp.up_proj"] is Int4Linear
    if len(rules) > 1:
        assert kinds["model.layers.1.self_attn.v_proj"] is Int4x2Linear
    tokens = torch.arange(24).reshape(2, 12)
    quantized.save(tmp_path / "file")
    with (tmp_path / "file").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    assert sum(b - a for a, b in (t["data_offsets"] for t in header.values())) == predicted.tensors
    assert (tmp_path / "file").stat().st_size == predicted.disk
    again = method.load(tmp_path / "file")
    assert again.recipe == quantized.recipe
    assert torch.equal(again.serve(execution(chosen)).logits(tokens), served.logits(tokens))
    reference = quantized.serve(execution("dequantize")).logits(tokens)
    assert 0 < (served.logits(tokens) - reference).norm() / reference.norm() < 0.02


def test_a_layer_on_another_kernel_than_its_own_is_not_counted(
    llama, loaded, execution, monkeypatch
):
    """Every layer on a fast kernel, but one on the wrong one."""
    from bitgate import kernels

    quantized = quantized_by(plan(*MIXED[:1]), llama(), loaded)
    right = kernels.kernel("cpu-int4x2").pack

    def wrong(weight, bias):
        return torch.nn.Identity() if weight.grouping.out_features == 64 else right(weight, bias)

    monkeypatch.setattr(kernels.kernel("cpu-int4x2"), "pack", wrong)
    served = quantized.serve(execution("cpu-int4+cpu-int4x2"))
    assert (served.packed_layers, served.expected_layers) == (10, 14)


def test_a_plan_on_one_kernel_by_name(llama, loaded):
    quantized = quantized_by(plan(*MIXED), llama(), loaded, kernel="dequantize")
    assert quantized.recipe.name == "hqq-plan-p-rtn-dequantize"
    assert method.kernel(shapes_of(llama()), quantized.recipe, "cpu") == "dequantize"


def test_gates_know_every_name_of_several_kernels():
    names = quantize.kernel_names()
    assert {"cpu-int4+cpu-int4x2", "cpu-int4+dequantize", "cpu-int4"} <= set(names)
    assert len(names) == len(set(names))


# --- what a search chooses among -------------------------------------------------------------


def test_units_are_all_layers_once():
    for slices in (1, 3, 8, 20):
        rules = units(shapes(LLAMA), slices)
        found = [name for rule in rules.values() for name in matches(rule, shapes(LLAMA), "here")]
        assert sorted(found) == sorted(LLAMA)


@given(st.lists(st.sampled_from((8, 4, 3)), min_size=16, max_size=16), st.sampled_from((None, 8)))
def test_a_plan_of_units_gives_each_its_bits(bits, head):
    rules = units(shapes(LLAMA), 4)
    chosen = dict(zip(rules, bits, strict=True))
    made = plan_of("found", chosen | ({HEAD: head} if head else {}), rules, 64)
    found = widths(made, shapes(LLAMA))
    for unit, rule in rules.items():
        for name in matches(rule, shapes(LLAMA), "here"):
            assert found[name] == (chosen[unit], 64)
    assert found.get("lm_head") == ((head, 64) if head else None)


def test_a_gate_on_several_kernels_is_explained(project, capfd):
    """Of plans only: no other recipe is served by more than one."""
    from bitgate.cli import main

    folder = project(
        MINE + 'rules = [{ part = "attention", bits = 8 }]',
        '[[recipe]]\nmethod = "hqq"\nplan = "mine"\n'
        '[[recipe]]\nmethod = "hqq"\nbits = 4\ngroup_size = 64\n',
    )
    matrix = MATRIX.replace('"hqq-plan-mine"', '"hqq-plan-mine", "hqq-w4g64"')
    (folder / "matrix.toml").write_text(matrix)
    rules = folder / "thresholds.toml"
    rules.write_text(
        '[[gate]]\nname = "mixed"\nmatch = { kernel = "cpu-int4+*" }\n'
        "require.perplexity_ratio = { max = 2 }\n"
    )
    files = ["--catalog", str(folder), "--thresholds", str(rules)]
    for cell, met in (("m-hqq-plan-mine", True), ("m-hqq-w4g64", False)):
        with pytest.raises(SystemExit) as done:
            main(["gates", "--explain", cell, *files])
        assert done.value.code == 0
        assert ("cpu-int4+cpu-int4x2" in capfd.readouterr().out) is met
