"""What this checkout ships: catalog, matrix, gates and recorded costs fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitgate import kernels, quantize
from bitgate.catalog import load, read_toml
from bitgate.gates import thresholds
from bitgate.plugin.options import BUDGETS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def catalog():
    return load(ROOT / "fixtures", quantize.recipe_types())


def test_gates_are_sound(catalog):
    rules = thresholds.load(ROOT / "thresholds.toml")
    thresholds.check(rules, catalog.cases(), kernels.DEVICES, kernels.NAMES)
    strict = thresholds.load(ROOT / "tests/data/too_strict.toml")
    thresholds.check(strict, catalog.cases(), kernels.DEVICES, kernels.NAMES)


def test_the_commit_cadence_fits_its_budget(catalog):
    """Costs were recorded with `tox -e cost -- --record`, preparations included."""
    costs = read_toml(ROOT / "fixtures" / "costs.toml")["seconds"]
    due = [case.key for case in catalog.cases("commit")]
    missing = [key for key in due if key not in costs]
    assert not missing, "run the benchmarks and record their cost"
    assert sum(costs[key] for key in due) <= 60 * BUDGETS["commit"]


def test_the_default_matrix_is_whole(catalog):
    at_commit = {case.key for case in catalog.cases("commit")}
    model = "llama-smollm2-135m"
    for recipe in ("hqq-w8g64", "hqq-w4g64", "hqq-w3g64", "hqq-w2g64", "hqq-w4g64-head4"):
        assert f"perplexity[{model}-{recipe}-enwiki]" in at_commit
        assert f"quantize[{model}-{recipe}]" in at_commit
    assert "decode[llama-3.2-1b-shape-hqq-w4g64-head4-rtn-b1]" in at_commit
    nightly = {case.cell.recipe.name for case in catalog.cases("nightly")}
    for bits in (8, 4, 3, 2, 1):
        for group in (32, 64, 128):
            for axis in ("", "-axis0"):
                assert f"hqq-w{bits}g{group}{axis}" in nightly


def test_the_hub_entry_differs_by_toml_only(catalog):
    model = catalog.models["llama-3.2-1b-instruct"]
    dataset = catalog.datasets["wikitext-2"]
    assert model.source.kind == dataset.source.kind == "hub"
    weekly = [case for case in catalog.cases("weekly") if case.cell.model is model]
    assert {case.kind for case in weekly} == {"quantize", "perplexity", "decode", "prefill"}


def test_sentiment_is_asked_at_each_width_and_batch_size(catalog):
    model = "llama-smollm2-135m-sentiment"
    assert catalog.models[model].source.dataset == catalog.labelled["tweets"]
    cadences = ("commit", "nightly", "weekly")
    due = {cadence: {case.key for case in catalog.cases(cadence)} for cadence in cadences}
    recipes = ("hqq-w8g64", "hqq-w4g64-dequantize", "hqq-w3g64")
    assert f"accuracy[{model}-{recipes[1]}-tweets-b32]" in due["commit"]
    for recipe in recipes:
        assert f"quantize[{model}-{recipe}]" in due["nightly"]
        assert f"accuracy[{model}-{recipe}-tweets-b32]" in due["nightly"]
        for batch in (1, 32, 64):
            assert f"accuracy[{model}-{recipe}-tweets-b{batch}-timed]" in due["weekly"]
