"""A whole small project: a real model, tokenizer and text on disk, the real benchmarks, and real
pytest processes that measure it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MODELS = """
[model.llama-tiny]
family = "llama"
source = { kind = "local", path = "../tiny" }
"""
DATASETS = """
[dataset.words]
format = "plain"
source = { kind = "local", path = "../words.txt" }
tokens = 992
window = 32
"""
MATRIX = """
[decode.b1]
output = 256
prompt = 8
threads = 1

[[matrix]]
cadence = "commit"
models = ["llama-tiny"]
recipes = ["hqq-w8g64", "hqq-w4g64"]
quantize = true
perplexity = ["words"]

[[matrix]]
cadence = "nightly"
models = ["llama-tiny"]
recipes = ["hqq-w4g64"]
decode = ["b1"]
"""
THRESHOLDS = """
[[gate]]
name = "kernel"
require.packed_layers = { within = 0 }

[[gate]]
name = "same after reload"
match = { method = "hqq" }
require.reload_difference = { max = 0 }
require.size_mib = { within = 0.05 }
require.memory_mib = { within = 0 }

[[gate]]
name = "quality"
match = { bits = [8, 4] }
require.perplexity_ratio = { max = 2 }
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, made once; tests get copies."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("template")
    words = [f"word{number}" for number in range(500)]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(
        folder / "tiny"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # far from uniform predictions, so that quantizing shows
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    chosen = random.Random(0)
    (folder / "words.txt").write_text(" ".join(chosen.choice(words) for _ in range(4000)))
    for name, text in (
        ("fixtures/models.toml", MODELS),
        ("fixtures/datasets.toml", DATASETS),
        ("fixtures/matrix.toml", MATRIX),
        ("thresholds.toml", THRESHOLDS),
        ("pytest.toml", '[pytest]\naddopts = ["--import-mode=importlib"]\n'),
        ("conftest.py", 'pytest_plugins = ["bitgate.plugin"]\n'),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree(ROOT / "bench", folder / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@dataclass
class Project:
    """A project in a folder of its own, with a cache of its own."""

    path: Path

    def command(self, *arguments: str) -> list[str]:
        plugins = ("anyio", "hypothesispytest", "platformdirs")
        without = [word for plugin in plugins for word in ("-p", f"no:{plugin}")]
        return [sys.executable, "-m", "pytest", "bench", *without, *arguments]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "BITGATE_"))}
        return {
            **kept,
            "BITGATE_CACHE": str(self.path / "cache"),
            "BITGATE_DATA": str(self.path / "data"),
            "COLUMNS": "160",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",  # one that there is would not be shared by two workers
        }

    def run(self, *arguments: str, seconds: int = 300) -> subprocess.CompletedProcess[str]:
        """Start a real pytest process on the benchmarks, and wait for it."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.path,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def saved(self) -> list[Path]:
        return sorted((self.path / ".benchmarks").glob("*/*.json"))


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Project:
    """A copy of the project that a test may change."""
    shutil.copytree(template, tmp_path / "project")
    return Project(tmp_path / "project")
