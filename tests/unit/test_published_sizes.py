"""Sizes that others have printed, to the last digit, by the packing rules of the methods."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from bitgate.catalog import DEFAULTS, load_entries
from bitgate.quantize import QuantizeError, recipe_types
from bitgate.quantize.hqq_recipe import HqqRecipe
from bitgate.quantize.linear import LinearRecipe
from bitgate.quantize.lock import Locks
from bitgate.quantize.published import (
    DEIT_S,
    HQQ_META,
    LLAMA_1B,
    LLAMA_7B,
    OPT_BITSANDBYTES,
    OPT_BY_HAND,
    Counting,
)
from bitgate.quantize.shapes import LinearShape, ModelShapes


@pytest.fixture(scope="module")
def catalog():
    return load_entries(DEFAULTS, recipe_types())


@pytest.fixture(scope="module")
def shapes(catalog):
    locks = Locks.read(DEFAULTS)
    return lambda name: locks.shapes(catalog.models[name])


@pytest.mark.parametrize(
    ("model", "counting", "recipe", "printed"),
    [
        ("llama-3.2-1b-shape", LLAMA_1B, None, "2858.129"),
        ("llama-3.2-1b-shape", LLAMA_1B, "hqq-w8g64", "1988.134"),
        ("llama-3.2-1b-shape", LLAMA_1B, "hqq-w4g64", "1524.134"),
        ("llama-3.2-1b-shape", LLAMA_1B, "hqq-w2g64", "1292.134"),
        ("deit3-s", DEIT_S, None, "82.540"),
        ("deit3-s", DEIT_S, "hqq-w8g32", "26.852"),
        ("deit3-s", DEIT_S, "hqq-w4g32", "16.727"),
        ("deit3-s", DEIT_S, "hqq-w3g32", "14.706"),
        ("deit3-s", DEIT_S, "hqq-w2g32", "11.665"),
        ("llama-2-7b-sentiment", LLAMA_7B, None, "24.61"),
        ("llama-2-7b-sentiment", LLAMA_7B, "hqq-w8g64", "7.27"),
        ("llama-2-7b-sentiment", LLAMA_7B, "hqq-w4g64", "4.26"),
        ("llama-2-7b-sentiment", LLAMA_7B, "hqq-w3g64", "3.66"),
        ("opt-350m", OPT_BY_HAND, None, "1324.785664"),
        ("opt-350m", OPT_BY_HAND, "linear-w8-channel-symmetric", "416.56"),
        ("opt-350m", OPT_BY_HAND, "the first ten", "1277.65"),
        ("opt-350m", OPT_BITSANDBYTES, "bitsandbytes-int8", "359.354368"),
        ("opt-350m", OPT_BITSANDBYTES, "bitsandbytes-fp4", "207.835136"),
        ("opt-350m", OPT_BITSANDBYTES, "bitsandbytes-nf4", "207.835136"),
    ],
)
def test_published(catalog, shapes, model, counting, recipe, printed):
    recipes = {
        **catalog.recipes,
        None: None,
        "the first ten": LinearRecipe(
            bits=8, granularity="channel", symmetric=True, first_linears=10
        ),
    }
    size = counting.size(shapes(model), recipes[recipe])
    digits = len(printed.partition(".")[2])
    assert f"{size:.{digits}f}" == printed


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_group_printed_beside_the_table_of_deit_is_wrong(catalog, shapes, bits):
    printed = {8: "26.852", 4: "16.727", 3: "14.706", 2: "11.665"}[bits]
    size = DEIT_S.size(shapes("deit3-s"), catalog.recipes[f"hqq-w{bits}g64"])
    assert f"{size:.3f}" != printed
    assert size < 0.98 * float(printed)


@pytest.mark.parametrize(("meta", "same"), [(43, False), (44, True), (52, True), (53, False)])
def test_how_much_is_known_of_what_else_the_table_of_llama_counts(catalog, shapes, meta, same):
    counting = Counting("MiB", 2, tied_twice=True, meta=meta)
    rows = {8: "1988.134", 4: "1524.134", 2: "1292.134"}
    found = {}
    for bits in rows:
        size = counting.size(shapes("llama-3.2-1b-shape"), catalog.recipes[f"hqq-w{bits}g64"])
        found[bits] = f"{size:.3f}"
    assert (found == rows) is same


def test_hqq_itself_keeps_so_much_beside_codes_scale_and_zero():
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    layer = HQQLinear(torch.nn.Linear(64, 64, bias=False), config, torch.float16, device="cpu")
    state = {name: part.nbytes for name, part in layer.state_dict().items()}
    meta = ("nbits", "group_size", "axis", "shape", "packing", "unpack_view_dtype")
    flags = ("view_as_float", "quant_scale", "quant_zero")
    assert sum(state[name] for name in (*meta, *flags)) == HQQ_META
    rest = state.keys() - {*meta, *flags, "W_q", "scale", "zero"}
    assert sum(state[name] for name in rest) == 19


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_the_shapes_of_deit_are_those_of_timm(catalog, shapes):
    from bitgate.quantize import shapes_of
    from bitgate.sources import fetch_config
    from bitgate.sources.architecture import skeleton

    model = catalog.models["deit3-s"]
    assert shapes_of(skeleton(fetch_config(model), model.task)) == shapes("deit3-s")


# --- counted by hand -------------------------------------------------------------------------

TIED = ModelShapes(
    (LinearShape("a", 8, 64, False), LinearShape("h", 10, 8, False)), 80, 0, "h", True
)


def test_a_tied_head_once_or_twice():
    assert Counting("MB", 4).bytes(TIED, None) == 4 * (8 * 64 + 80)
    assert Counting("MB", 4, tied_twice=True).bytes(TIED, None) == 4 * (8 * 64 + 80 + 80)


def test_meta_is_counted_for_each_quantized_layer():
    recipe = HqqRecipe(bits=8, group_size=64)
    plain = Counting("MiB", 2).bytes(TIED, recipe)
    assert plain == 8 * 64 + 2 * 8 * 2 + 2 * 80
    assert Counting("MiB", 2, meta=49).bytes(TIED, recipe) == plain + 49


def test_leaves_need_names():
    with pytest.raises(QuantizeError, match="do not name the tensors; run `bitgate lock`"):
        DEIT_S.bytes(TIED, None)
