"""`bitgate search`: what it measures, the plan that it chooses, and the file that it writes."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch

from bitgate import quantize
from bitgate.catalog import Plan, Rule, load_entries, read_toml
from bitgate.cli import main
from bitgate.cli.plan_file import plan_toml, write_plan
from bitgate.measure import search as searching
from bitgate.measure.layer_times import layer_seconds
from bitgate.measure.measurement import MeasureError
from bitgate.measure.search import Budget, Candidate, best_within, cheapest_within, spread
from bitgate.measure.sensitivity import Sensitivity
from bitgate.metric import Interval, Metric
from bitgate.quantize import LinearShape, method, shapes_of
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.lock import Lock, LockedModel
from bitgate.quantize.plans import HEAD, units, widths
from bitgate.sources import declared


def recipe(plan):
    return HqqRecipe(plan=plan, solver=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sensitivity(llama, loaded, random_text, execution, cache):
    def make(windows=40, **changes):
        base = loaded(llama(num_hidden_layers=4, **changes))
        text = random_text(documents=(600, 600), window=16)
        return Sensitivity(base, text, execution("torch"), recipe, 64, windows)

    return make


# --- what is measured ------------------------------------------------------------------------


def test_a_unit_alone_is_measured_as_the_whole_model_would_be(sensitivity):
    """Blocks that were not run again change nothing: KL by hand, all of the model run."""
    of = sensitivity(windows=10**6)
    rules = searching.units_with_head(units(of.shapes, 4), of.shapes)
    found = of.measure(rules, (8, 2))
    assert set(found) == {*rules}
    assert HEAD in found
    text, base = of.text, of.model.module
    for unit in ("self_attn.q_proj 1/4", "mlp.down_proj 3/4", "mlp.up_proj 4/4", HEAD):
        plan = of.plan(unit, rules[unit], 2)
        quantized = method("hqq").quantize(of.model, recipe(plan), torch.float32)
        assert len(quantized.layers) == 1
        with torch.inference_mode():
            p, q = (m(text.tokens).logits[:, :-1].log_softmax(-1) for m in (base, quantized.module))
        kl = (p.exp() * (p - q)).sum(-1)
        rows = [kl[w, int(first) - 1 :] for w, first in enumerate(text.scored)]
        assert found[unit][2] == pytest.approx(float(torch.cat(rows).mean()), rel=2e-3)
    assert all(harms[8] < harms[2] for harms in found.values())


def test_a_second_search_measures_nothing_again(sensitivity, monkeypatch):
    of = sensitivity()
    rules = units(of.shapes, 2)
    first = of.measure(rules, (4,))
    plan = Plan(name="a", bits=4, group_size=64)
    ratio = of.verify(plan)["perplexity_ratio"]
    again = sensitivity()
    monkeypatch.setattr(again, "_quantize", lambda plan: pytest.fail("measured again"))
    assert again.measure(rules, (4,)) == first
    assert again.verify(plan.model_copy(update={"name": "b"}))["perplexity_ratio"] == ratio


def test_what_was_interrupted_goes_on(sensitivity, monkeypatch):
    of = sensitivity()
    rules = units(of.shapes, 2)
    quantize_, count = of._quantize, iter(range(3))

    def interrupted(plan):
        if next(count) == 2:
            raise KeyboardInterrupt
        return quantize_(plan)

    monkeypatch.setattr(of, "_quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        of.measure(rules, (4,))
    seen = []
    again = sensitivity()
    quantize_again = again._quantize
    monkeypatch.setattr(again, "_quantize", lambda p: seen.append(p) or quantize_again(p))
    again.measure(rules, (4,))
    assert len(seen) == len(rules) - 2


def test_another_model_is_measured_by_itself(sensitivity, monkeypatch):
    of = sensitivity()
    rules = dict(list(units(of.shapes, 2).items())[:1])
    first = of.measure(rules, (4,))
    other = sensitivity(seed=1)
    object.__setattr__(other.model, "fingerprint", "another")
    assert other.measure(rules, (4,)) != first


def test_layers_are_timed_once_on_this_machine(llama, execution, cache):
    linears = shapes_of(llama()).linears[:1]
    seconds = layer_seconds(linears, (8, 4), 64, recipe, execution("torch"))
    assert set(seconds) == {(128, 128, None), (128, 128, 8), (128, 128, 4)}
    assert all(0 < value < 1 for value in seconds.values())
    assert layer_seconds(linears, (8, 4), 64, recipe, execution("torch")) == seconds


def test_layers_are_timed_on_their_kernels(execution, cache):
    """Dequantizing takes many times as long, even beside whatever else disturbs."""
    linears = [LinearShape("large", 1024, 1024, False)]
    packed = layer_seconds(linears, (4,), 64, recipe, execution("torch"))[1024, 1024, 4]

    def by_reference(plan):
        return HqqRecipe(plan=plan, solver=False, kernel="dequantize")

    slow = layer_seconds(linears, (4,), 64, by_reference, execution("torch"))[1024, 1024, 4]
    assert slow > 2 * packed


# --- the choice ------------------------------------------------------------------------------


def ratio(value, half=0.01):
    return Metric("perplexity_ratio", value, Interval(value - half, value + half, 0.98, "", "w", 9))


def points(count=11):
    """Ever smaller and more harmful ones."""
    return [
        Candidate(Plan(name=f"p{at}", bits=4, group_size=64), at / 10, 1000 - at, 4.0, 1 + at / 10)
        for at in range(count)
    ]


def measuring(truth):
    seen = []

    def verify(plan):
        at = int(plan.name[1:])
        seen.append(at)
        return {"perplexity_ratio": ratio(truth(at / 10))}

    return verify, seen


@pytest.mark.parametrize("steepness", [0.1, 0.5, 1, 3])
def test_the_cheapest_that_is_good_enough(steepness):
    found = points()
    verify, seen = measuring(lambda harm: math.exp(steepness * harm**1.2))
    chosen = cheapest_within(found, Budget(ratio=1.2), verify, 11)
    good = [at for at in range(11) if math.exp(steepness * (at / 10) ** 1.2) + 0.01 <= 1.2]
    assert chosen == good[-1]
    assert found[chosen].ratio.high <= 1.2
    assert len(seen) == len(set(seen)) <= 7


def test_few_measurements_still_give_one_that_is_good():
    found = points()
    verify, seen = measuring(lambda harm: math.exp(2 * harm))
    chosen = cheapest_within(found, Budget(ratio=1.1), verify, 2)
    assert found[chosen].ratio.high <= 1.1
    assert len(seen) <= 2


def test_if_none_is_good_the_best_is_told():
    verify, _ = measuring(lambda harm: 2 + harm)
    with pytest.raises(MeasureError, match=r"not even the finest plan .* perplexity_ratio 2 "):
        cheapest_within(points(), Budget(ratio=1.1), verify, 6)
    verify, _ = measuring(lambda harm: math.nan)
    with pytest.raises(MeasureError, match=r"not even the finest plan .* nan"):
        cheapest_within(points(), Budget(ratio=1.1), verify, 6)


def test_budgets_of_size_and_speed():
    found = points()
    assert best_within(found, Budget(size_bytes=996)) == 4
    assert best_within(found, Budget(speedup=1.65)) == 7
    assert best_within(found, Budget(size_bytes=996, speedup=1.65)) == 7
    with pytest.raises(MeasureError, match=r"smallest has 0\.0 MiB, the fastest .* 2\.00 times"):
        best_within(found, Budget(size_bytes=10))
    verify, _ = measuring(lambda harm: 1.0)
    assert cheapest_within(found, Budget(ratio=1.1, speedup=1.5), verify, 9) == 10


def test_points_shown_are_spread():
    assert spread(points(), 3) == [0, 5, 10]
    assert spread(points(3), 9) == [0, 1, 2]
    assert spread(points(), 1) == [0]
    assert spread(points(), 0) == []


def test_costs_are_exact(sensitivity):
    """A unit's bytes beside the base's, added up, are the plan's."""
    of = sensitivity()
    shapes = of.shapes
    rules = searching.units_with_head(units(shapes, 4), shapes)
    harms = {unit: {8: 0.0, 4: float(at + 1)} for at, unit in enumerate(rules)}

    def size(plan):
        return method("hqq").predicted_bytes(shapes, recipe(plan), "dequantize", 4)

    seconds = {
        (s.out_features, s.in_features, bits): float(bits or 32)
        for s in shapes.linears
        for bits in (None, 8, 4)
    }
    costs = searching.Costs(shapes, 64, size, seconds)
    total = sum(p.numel() for p in of.model.module.parameters()) * 4
    for axis in ("size", "speed"):
        found = searching.candidates("n", axis, rules, harms, of.plan, costs, total)
        assert found[0].bits_per_weight == 8
        assert found[0].harm == 0
        assert found[-1].bits_per_weight == 4
        assert found[-1].speedup == pytest.approx(8)
        for before, after in pairwise(found):
            assert after.size_bytes < before.size_bytes
            assert after.speedup > before.speedup
        for one in found:
            made = method("hqq").quantize(of.model, recipe(one.plan), torch.float32)
            served = made.serve(of.execution)
            assert served.memory_bytes() == one.size_bytes + shapes.transient


# --- the file ----------------------------------------------------------------------------------

PLAN = Plan(
    name="mine",
    bits=4,
    group_size=64,
    head=8,
    rules=(
        Rule(layers=("*.a", "*.b"), blocks=("1/8", -1), bits=8),
        Rule(part="mlp", blocks=("first",), keep=True),
        Rule(blocks=(2,), bits=3, group_size=32),
    ),
)


def test_a_plan_is_written_as_it_is_read(tmp_path):
    path = tmp_path / "plans.toml"
    path.write_text("# mine\n[plan.other] # kept\nbits = 8\ngroup_size = 64\n")
    write_plan(path, PLAN.model_copy(update={"bits": 8}), ["old"])
    write_plan(path, PLAN, ["found today"])
    text = path.read_text()
    assert text.startswith("# mine\n[plan.other] # kept\n")
    assert "# found today" in text
    assert "old" not in text
    read = load_entries(tmp_path, quantize.recipe_types()).plans
    assert read["mine"].model_copy(update={"where": ""}) == PLAN
    assert read["other"].bits == 8
    assert not list(tmp_path.glob("*.partial"))


def test_a_new_file_holds_one_plan(tmp_path):
    write_plan(tmp_path / "new" / "plans.toml", PLAN, [])
    assert list(read_toml(tmp_path / "new" / "plans.toml")["plan"]) == ["mine"]
    assert plan_toml(PLAN).count("\n") == 9


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, cache, llama, monkeypatch):
    """A project of a tiny model with a tokenizer of its own, and two texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{at}": at for at in range(256)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "model"
    llama(num_hidden_layers=4).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    torch.manual_seed(0)
    for name in ("scored", "seen"):
        drawn = torch.randint(0, 256, (4000,)).tolist()
        (tmp_path / f"{name}.txt").write_text(" ".join(f"w{token}" for token in drawn))
    (tmp_path / "models.toml").write_text(
        '[model.tiny]\nfamily = "llama"\nsource = { kind = "local", path = "model" }\n'
    )
    (tmp_path / "datasets.toml").write_text(
        "".join(
            f'[dataset.{name}]\nformat = "plain"\ntokens = 600\nwindow = 32\n'
            f'source = {{ kind = "local", path = "{name}.txt" }}\n'
            for name in ("scored", "seen")
        )
        + '[dataset.again]\nformat = "plain"\nsource = { kind = "local", path = "scored.txt" }\n'
    )
    (tmp_path / "matrix.toml").write_text(
        '[[matrix]]\ncadence = "commit"\nmodels = ["tiny"]\nrecipes = ["hqq-w4g64"]\n'
        'perplexity = ["scored"]\n'
    )
    return tmp_path


@pytest.fixture
def search(project, capfd):
    """Runs the command: exit status, output and errors."""

    def run(*arguments):
        command = ["search", "tiny", "--catalog", str(project), "--text", "seen", "--slices", "2"]
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main([*command, *arguments])
        return done.value.code, *capfd.readouterr()

    return run


def test_a_plan_is_found_written_and_read(project, search):
    budget = ("--perplexity-ratio", "1.05")
    status, _, errors = search(*budget, "--name", "mine", "--write", str(project / "plans.toml"))
    assert status == 0, errors
    plan = load_entries(project, quantize.recipe_types()).plans["mine"]
    assert plan.searched_on.name == "seen"
    _, output, _ = search(*budget, "--json")
    found = json.loads(output)
    (chosen,) = [one for one in found if one["chosen"]]
    measured = chosen["measured"]["perplexity_ratio"]
    assert measured["interval"]["high"] <= 1.05
    sizes, harms = ([one[key] for one in found] for key in ("size_bytes", "harm"))
    assert sizes == sorted(sizes, reverse=True)
    assert harms == sorted(harms)
    assert chosen["plan"]["bits"] == plan.bits
    assert widths(plan, shapes_of(load_tiny(project)))


def load_tiny(project):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(project / "model")


def test_the_front_is_shown_without_a_budget(search):
    status, output, _ = search()
    assert status == 0
    assert "perplexity ratio" in output
    assert "→" not in output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--text", "scored"],
            4,
            "--text: scored may draw what scored scores, which tiny is gated on: give another\n",
        ),
        (
            ["--text", "again"],
            4,
            'gated on: add avoid = ["scored"] to dataset again, or give another',
        ),
        (["--text", "sene"], 4, "--text: nothing is called 'sene'; did you mean 'seen'?"),
        (["--write", "x.toml"], 4, "--write: give --size, --speedup or --perplexity-ratio"),
        (["--name", "A b", "--size", "1"], 4, "--name: 'A b' is no name"),
        (["--device", "gpu"], 4, "--device: expected auto, cpu"),
        (["--group-size", "12"], 4, "--group-size: group_size: Input should be a multiple of 8"),
        (["--group-size", "384"], 4, "ERROR: --group-size: model.layers.0"),
        (["--size", "0.001"], 1, "no plan is within the budget: the smallest has"),
    ],
    ids=str,
)
def test_what_cannot_be_searched(search, arguments, status, message):
    ended, _, errors = search(*arguments)
    assert ended == status
    assert message in errors


@pytest.fixture
def unloaded(project, monkeypatch):
    """A project whose model is locked, and must not be loaded."""
    model = load_entries(project, quantize.recipe_types()).models["tiny"]
    lock = Lock.read(project)
    lock.models["tiny"] = LockedModel.of(declared(model), shapes_of(load_tiny(project)))
    lock.path.write_text(lock.text())
    monkeypatch.setattr("bitgate.sources.load_model", lambda *_, **__: pytest.fail("loaded"))
    return project


def test_groups_that_do_not_fit_are_refused_before_the_model_is_loaded(unloaded, search):
    status, _, errors = search("--group-size", "384")
    assert status == 4
    assert "384 on axis 1: the group size does not divide the number of weights" in errors
    assert errors.endswith("the nearest that fits is 256\n")
    status, _, errors = search("--group-size", "12")
    assert status == 4
    assert "Traceback" not in errors


def test_a_file_that_cannot_be_written_is_refused_before_the_model_is_loaded(unloaded, search):
    for path, reason in (
        (unloaded / "models.toml" / "plans.toml", "cannot be written: File exists"),
        (unloaded / "broken.toml", "not valid TOML"),
    ):
        (unloaded / "broken.toml").write_text("[plan")
        status, _, errors = search("--size", "1", "--write", str(path))
        assert status == 4
        assert f"ERROR: --write: {path}: {reason}" in errors
    assert not list(unloaded.glob("*.partial"))


def test_a_plan_that_cannot_be_written_in_the_end_is_shown(search, project, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitgate.cli.plan_file.write_plan", full)
    status, output, errors = search("--size", "1", "--write", str(project / "plans.toml"))
    assert status == 4
    assert "[plan.searched]" in output
    assert "plans.toml cannot be written: No space left on device" in errors


def test_ctrl_c_says_that_nothing_is_lost(search, monkeypatch):
    def interrupt(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sensitivity, "measure", interrupt)
    status, _, errors = search("--size", "1")
    assert status == 2
    assert "what was measured is kept" in errors
