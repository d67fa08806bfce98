"""Heads that share their weight with the embedding and have a bias, which may be shared, too."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, PhiConfig

from bitgate.kernels.served import tensor_bytes
from bitgate.quantize import method, shapes_of
from bitgate.quantize.footprint import base_bytes, footprint
from bitgate.quantize.lock import LockedModel

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
}
MODELS = {"phi": PhiConfig(**SMALL), "bert": BertConfig(**SMALL, is_decoder=True)}
RECIPES = [
    ("hqq", {"bits": 4, "group_size": 64}),
    ("hqq", {"bits": 4, "group_size": 64, "head": 4}),
    ("linear", {"bits": 8, "granularity": "channel", "head": 8}),
    ("bitsandbytes", {"type": "nf4"}),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("of", "how"), RECIPES, ids=str)
def test_the_bias_counts_once(name, of, how, loaded, execution, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(MODELS[name]).eval().requires_grad_(False)
    shapes = shapes_of(base)
    assert shapes.tied
    assert shapes.parameters == sum(p.numel() for p in base.parameters())
    assert base_bytes(shapes, "float32") == tensor_bytes(base)
    recipe = method(of).RECIPE(**how)
    made = method(of).quantize(loaded(base), recipe, torch.float32)
    made.save(tmp_path / "file")
    locked = LockedModel.model_validate_json(LockedModel.of("x", shapes).model_dump_json())
    for one in (shapes, locked.shapes()):
        found = footprint(one, recipe, "cpu", "float32", 8, 1)
        assert found.size.disk == (tmp_path / "file").stat().st_size
        assert found.size.memory == made.serve(execution(found.kernel)).memory_bytes()
