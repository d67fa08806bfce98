"""What a saved file says of its model: the same wherever the model was read from."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
)

from bitgate.catalog import Dataset
from bitgate.quantize.linear import load, quantize_module
from bitgate.quantize.linear_recipe import LinearRecipe
from bitgate.quantize.shapes import shapes_of
from bitgate.sources.architecture import config_text, skeleton, task_called, task_of

TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GEMMA = {"text_config": {**TEXT, "head_dim": 8}, "vision_config": IMAGES, "mm_tokens_per_image": 4}


@pytest.mark.parametrize(("kind", "fields"), [("llama", TEXT), ("gemma3", GEMMA)])
def test_a_model_that_was_loaded_and_its_skeleton_say_the_same(kind, fields, tmp_path):
    """The one was saved as some class in float32 and is loaded in bfloat16; of the other no file
    says a class, as of a GGUF file."""
    config = CONFIG_MAPPING[kind](**fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    bare = CONFIG_MAPPING[kind](**fields)
    assert loaded.config.architectures
    assert not bare.architectures
    text = config_text(loaded)
    assert text == config_text(skeleton(bare))
    said = json.loads(text)
    assert said["architectures"] == [type(loaded).__name__]
    assert str(tmp_path) not in text
    assert "dtype" not in said.get("text_config", said)


CALIBRATION = Dataset.model_validate(
    {
        "name": "images",
        "source": {"kind": "local", "path": "images"},
        "format": "plain",
        "tokens": 64,
        "window": 16,
    }
)


@pytest.mark.parametrize("integers", [{}, {"activation_bits": 8, "calibration": CALIBRATION}])
def test_of_several_classes_for_a_task_the_same_one_comes_back(integers, tmp_path):
    """transformers has two of DeiT, and makes the first unless the configuration says which. The
    dtype of its images is that of the first convolution's weight."""
    torch.manual_seed(0)
    base = DeiTForImageClassificationWithTeacher(DeiTConfig(**IMAGES, num_labels=3))
    base = base.eval().requires_grad_(False)
    assert task_of(base) == "image-classification"
    assert shapes_of(base).cache == ()  # it keeps nothing of tokens
    images = torch.randn(2, 3, 28, 28)
    recipe = LinearRecipe(bits=8, granularity="channel", **integers)
    made = quantize_module(base, recipe, torch.float32, [images])
    logits, expected = made.module(images).logits, base(images).logits
    assert (logits - expected).norm() / expected.norm() < 0.05
    made.save(tmp_path / "file")
    again = load(tmp_path / "file").module
    assert type(again) is type(base)
    assert torch.equal(again(images).logits, logits)


@pytest.mark.parametrize(
    ("classes", "task"),
    [
        ("LlamaForCausalLM", "causal-lm"),
        ("LlamaForSequenceClassification", "text-classification"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("BertModel", "causal-lm"),
        ("", "causal-lm"),
    ],
)
def test_what_models_of_a_class_are_asked(classes, task):
    assert task_called(classes) == task
