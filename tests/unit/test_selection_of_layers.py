"""Which layers a recipe quantizes: globs, the first blocks, the first linear layers."""

import re

import pytest

from bitgate.quantize import LinearShape, ModelShapes, QuantizeError
from bitgate.quantize.selection import SelectiveRecipe, block_of
from bitgate.quantize.shapes import ConvolutionShape, Patches

NAMES = [
    f"model.layers.{block}.{part}"
    for block in range(3)
    for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
]
PATCHES = Patches((3, 3), (1, 1), (0, 0), (1, 1), 1)
SHAPES = ModelShapes(
    linears=tuple(LinearShape(name, 8, 8, False) for name in [*NAMES, "lm_head"]),
    others=0,
    transient=0,
    head="lm_head",
    tied=False,
)


def selected(**keys):
    recipe = SelectiveRecipe(method="some", bits=4, **keys)
    return [layer.name for layer in recipe.selected(SHAPES)], recipe.name


@pytest.mark.parametrize(
    ("keys", "names", "name"),
    [
        ({}, NAMES, "some-w4"),
        ({"first_blocks": 2}, NAMES[:6], "some-w4-first2blocks"),
        ({"first_linears": 4}, NAMES[:4], "some-w4-first4linears"),
        ({"first_blocks": 9}, NAMES, "some-w4-first9blocks"),
        ({"layers": ["*.mlp.*"], "label": "mlp"}, [n for n in NAMES if "mlp" in n], "some-w4-mlp"),
        (
            {"layers": ["*.mlp.*"], "label": "mlp", "first_blocks": 2, "first_linears": 3},
            [NAMES[1], NAMES[2], NAMES[4]],
            "some-w4-mlp-first2blocks-first3linears",
        ),
    ],
)
def test_selection(keys, names, name):
    assert selected(**keys) == (names, name)


def test_a_selection_of_nothing_says_what_there_is():
    with pytest.raises(QuantizeError, match=r"recipe some-w4-x: layers: .*'\*fc1'; .*q_proj"):
        selected(layers=["*fc1"], label="x")
    shapes = ModelShapes((LinearShape("fc1", 8, 8, False),), 0, 0, None, False)
    recipe = SelectiveRecipe(method="some", bits=4, first_blocks=1)
    with pytest.raises(QuantizeError, match="some-w4-first1blocks: first_blocks: no linear layer"):
        recipe.selected(shapes)


@pytest.mark.parametrize("name", ["*.mpl.*", "lm_head"])
def test_a_glob_that_matches_nothing_is_refused_beside_one_that_does(name):
    """The head is no layer that a glob chooses: methods that quantize it have a key for it."""
    with pytest.raises(QuantizeError, match=re.escape(f"no linear layer matches {name!r}")):
        selected(layers=["*.mlp.*", name], label="x")


def test_a_glob_may_be_for_convolutions_alone():
    shapes = ModelShapes(
        SHAPES.linears,
        0,
        0,
        "lm_head",
        False,
        (ConvolutionShape("stem.conv", 8, 27, False, 0, PATCHES),),
    )
    recipe = SelectiveRecipe(method="some", bits=4, layers=["*.mlp.*", "stem.*"], label="x")
    found = [layer.name for layer in recipe.selected_with_convolutions(shapes)]
    assert found == ["stem.conv", *(name for name in NAMES if "mlp" in name)]
    with pytest.raises(QuantizeError, match=r"no linear layer matches 'stem\.\*'"):
        recipe.selected(shapes)


def test_globs_need_a_label():
    with pytest.raises(ValueError, match="`layers` needs a `label`"):
        selected(layers=["*.mlp.*"])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.11.mlp.up_proj", "model.layers.11"),
        ("blocks.0.attn.qkv", "blocks.0"),
        ("features.3.conv.0.0", "features.3"),
        ("lm_head", None),
        ("classifier.1", None),  # the number is the layer's own
    ],
)
def test_block_of(name, block):
    assert block_of(name) == block
