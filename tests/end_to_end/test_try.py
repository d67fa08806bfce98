"""`bitgate try` on a real checkpoint beside its base: a tiny model, its tokenizer and a text."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

COMMAND = (sys.executable, "-c", "from bitgate.cli import main; main()", "try")


@pytest.fixture
def attempt(project):
    """Runs it in a project whose model, text and checkpoint lie in its folder."""

    def run(*arguments):
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=project.path,
            env=project.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def checkpoint(project):
    """The project's model in 8 bits, as transformers saves it: the layers' weights as they are
    multiplied, one scale a row."""
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    module = AutoModelForCausalLM.from_pretrained(
        project.path / "tiny",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.float32,
        device_map="cpu",
    )
    module.save_pretrained(project.path / "int8")
    return project.path / "int8"


#: a dataset of which one window of 32 tokens would be scored, and a second
FEW = """
[dataset.few]
format = "plain"
source = { kind = "local", path = "../words.txt" }
tokens = 30
window = 32
"""
BOUNDS = ("--max-kl", "0.1", "--min-top1", "0.6", "--dataset", "words.txt", "--tokens", "1984")


def test_a_good_one_passes_and_can_be_kept(project, attempt, checkpoint):
    done = attempt("llama-tiny", "int8", *BOUNDS, "--keep", "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    size = checkpoint.joinpath("model.safetensors").stat().st_size / 2**20
    assert f"int8: bitsandbytes, 8 bits, {size:.1f} MiB of weights" in done.stdout
    assert "checkpoint-int8" in done.stdout
    assert "✓ pass" in done.stdout
    kept = project.path / "kept"
    (run,) = (kept / ".benchmarks").glob("*/*.json")
    records = [
        benchmark["extra_info"]["bitgate"]
        for benchmark in json.loads(run.read_text())["benchmarks"]
    ]
    assert {record["case"].partition("[")[0] for record in records} == {"quantize", "perplexity"}
    for record in records:
        assert record["recipe"]["bits"] == 8
        assert record["execution"]["kernel"] == "transformers"
        assert record["metrics"]["packed_layers"]["value"] == 14
    metrics = records[0]["metrics"] | records[1]["metrics"]
    assert metrics["size_mib"]["value"] == pytest.approx(size)
    assert metrics["reload_difference"]["value"] == 0
    assert 0 < metrics["kl_divergence"]["value"] < 0.1
    # it is a project like any other: one gate, changed, and measured again
    gates = tomllib.loads((kept / "thresholds.toml").read_text())["gate"]
    assert gates[0]["require"]["kl_divergence"] == {"max": 0.1}
    again = attempt("llama-tiny", "int8", "--keep", "kept")
    assert again.returncode == 4
    assert "--keep: kept is not empty" in again.stderr


def test_one_that_misses_a_bound_fails_with_the_numbers(attempt, checkpoint):
    done = attempt("tiny", "int8", *BOUNDS, "--max-kl", "1e-6", "--", "-k", "perplexity")
    assert done.returncode == 1
    assert "✗ FAIL" in done.stdout
    assert "is above max 1e-06" in done.stdout


@pytest.mark.slow
def test_speed_is_recorded(attempt, checkpoint):
    done = attempt("tiny", "int8", "--speed", *BOUNDS, "--", "-k", "decode")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decode ×" in done.stdout


@pytest.mark.slow
def test_one_that_is_not_quantized_is_measured_and_said_to_be_so(attempt):
    done = attempt("llama-tiny", "tiny", "--dataset", "words.txt", "--tokens", "1984")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not quantized; it is measured as it is" in done.stderr
    assert "1.000 ± 0.000" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama-tinny", "tiny"), "BASE: llama-tinny: .* did you mean 'llama-tiny'?"),
        (("tiny", "nothing"), "CHECKPOINT: nothing: no such directory or file, and no hub id"),
        (("tiny", "bench"), "bench: it has no config.json"),
        (("tiny", "wider"), "vocab_size is 600, the base's is 512"),
        (("quantized", "tiny"), "BASE: quantized is quantized itself (gptq)"),
        (("tiny", "tiny", "--dataset", "wrods"), "--dataset: wrods: .* did you mean 'words'?"),
        (
            ("tiny", "tiny", "--dataset", "words.txt", "--tokens", "100"),
            "--tokens: 100: scored in fewer than the 3 windows .* give at least 128",
        ),
        (
            ("tiny", "tiny", "--dataset", "few.txt"),
            "--dataset: few: too short: 127 tokens can .* Lower --tokens, give a longer text",
        ),
        (("tiny", "tiny", "--dataset", "two.txt", "--tokens", "254"), "it has 2 windows of 128"),
        (("tiny", "tiny", "--dataset", "few"), "--dataset: few: tokens: .* give at least 32"),
        (("tiny", "owner/name"), "CHECKPOINT: there is no owner/name here, so it is a hub id: "),
    ],
    ids=str,
)
def test_what_makes_no_sense(project, attempt, monkeypatch, arguments, message):
    import re
    import shutil

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    how = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    for name, changes in (("wider", {"vocab_size": 600}), ("quantized", how)):
        shutil.copytree(project.path / "tiny", project.path / name)
        path = project.path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    project.path.joinpath("few.txt").write_text("word1 " * 150)
    project.path.joinpath("two.txt").write_text("word1 " * 300)
    with project.path.joinpath("fixtures", "datasets.toml").open("a") as file:
        file.write(FEW)
    done = attempt(*arguments)
    assert done.returncode == 4
    assert "collected" not in done.stdout
    pattern = ".*".join(re.escape(part) for part in message.split(" .* "))
    assert re.search(pattern, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches_and_is_quick(attempt):
    done = attempt("--help")
    assert done.returncode == 0
    for taught in ("BASE is a model of the catalog", "bitgate try", "Exit status", "98 %"):
        assert taught in done.stdout


def test_the_benchmarks_come_along():
    """In a checkout they lie beside the package; in a wheel, in it."""
    import tomllib
    from pathlib import Path

    from bitgate.cli.try_ import benchmarks

    root = Path(__file__).parents[2]
    assert benchmarks() == root / "bench"
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"] == {"bench": "bitgate/bench"}
