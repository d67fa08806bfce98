"""A whole run in a real process: what it prints and what it leaves on disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from pyarrow import parquet

CASES = {
    f"{kind}[llama-tiny-hqq-w{bits}g64{suffix}]"
    for bits in (8, 4)
    for kind, suffix in (("quantize", ""), ("perplexity", "-words"))
}


def records(path):
    benchmarks = json.loads(path.read_text())["benchmarks"]
    return {b["extra_info"]["bitgate"]["case"]: b for b in benchmarks}


def test_measures_gates_saves_and_compares(project):
    first = project.run("--benchmark-autosave", "--benchmark-quiet")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 passed" in first.stdout
    assert "llama-tiny" in first.stdout
    assert "✓ pass" in first.stdout

    (saved,) = project.saved()
    found = records(saved)
    assert set(found) == CASES
    for case, benchmark in found.items():
        record = benchmark["extra_info"]["bitgate"]
        assert len(json.dumps(benchmark["extra_info"])) <= 8192
        assert record["schema"] == 1
        assert record["execution"]["device"] == "cpu"
        assert record["execution"]["kernel"] == ("cpu-int4" if "w4" in case else "dequantize")
        assert record["versions"]["torch"]
        assert benchmark["stats"]["rounds"] >= 1
        for metric in record["metrics"].values():
            interval = metric["interval"]
            if interval != "exact":
                assert interval["low"] <= metric["value"] <= interval["high"]
                assert interval["level"] == 0.98
                assert interval["n"] >= 1

    scores = parquet.read_table(saved.with_suffix(".parquet")).to_pandas()
    quality = scores[scores["case"] == "perplexity[llama-tiny-hqq-w4g64-words]"]
    ratio = found["perplexity[llama-tiny-hqq-w4g64-words]"]["extra_info"]["bitgate"]["metrics"][
        "perplexity_ratio"
    ]
    assert len(quality) == ratio["interval"]["n"] == 32
    # the saved scores are the ones that the metric was made of
    import math

    log_ratio = (quality["nll"].sum() - quality["base_nll"].sum()) / quality["tokens"].sum()
    assert math.exp(log_ratio) == pytest.approx(ratio["value"], rel=1e-9)

    second = project.run("--benchmark-autosave", "--benchmark-compare")
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"since {saved.stem}: 0 of" in second.stdout
    assert len(project.saved()) == 2
    compared = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare"],
        cwd=project.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert compared.returncode == 0, compared.stderr
    assert "0001" in compared.stdout
    assert "0002" in compared.stdout


def test_a_text_of_too_few_windows_is_refused_before_anything_is_quantized(project):
    project.path.joinpath("words.txt").write_text("word1 " * 80)
    datasets = project.path / "fixtures/datasets.toml"
    datasets.write_text(datasets.read_text().replace("tokens = 992", "tokens = 62"))
    done = project.run("-k", "perplexity and w4g64", "--setup-show")
    assert done.returncode == 1
    assert "dataset words: too short: it has 2 windows of 32 tokens" in done.stdout
    assert "SETUP    F quantized" not in done.stdout


def test_too_strict_a_bound_fails_with_all_numbers(project):
    (project.path / "strict.toml").write_text(
        '[[gate]]\nname = "w4 as good as w8"\nmatch = { bits = 4 }\n'
        "require.perplexity_ratio = { max = 0.5 }\nrequire.kl_divergence = { max = 1e-9 }\n"
    )
    done = project.run("-k", "w4g64 and words", "--thresholds", "strict.toml")
    assert done.returncode == 1
    for metric, bound in (("perplexity_ratio", "0.5"), ("kl_divergence", "1e-09")):
        line = next(li for li in done.stdout.splitlines() if metric in li and "above" in li)
        assert "98 % interval" in line
        assert f"is above max {bound}" in line
        assert '[strict.toml rule "w4 as good as w8"]' in line
    assert "over 32 windows" in done.stdout


def test_known_failures_are_expected_and_unexpected_passes_are_red(project):
    (project.path / "thresholds.toml").write_text(
        '[[gate]]\nname = "known"\nmatch = { bits = 4 }\n'
        'require.perplexity_ratio = { max = 0.5, expect = "fail", reason = "known" }\n'
        '[[gate]]\nname = "stale"\nmatch = { bits = 8 }\n'
        'require.perplexity_ratio = { max = 50, expect = "fail", reason = "was bad once" }\n'
    )
    done = project.run("-k", "words")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "expected fail" in done.stdout
    assert "unexpected pass" in done.stdout


@pytest.mark.slow
def test_decoding_is_recorded_at_its_cadence(project):
    (project.path / "runs").mkdir()
    done = project.run("--cadence", "nightly", "-k", "decode", "--benchmark-json=runs/one.json")
    assert done.returncode == 0, done.stdout
    (benchmark,) = json.loads((project.path / "runs/one.json").read_text())["benchmarks"]
    assert benchmark["fullname"] == "bench/test_decode.py::test_decode[llama-tiny-hqq-w4g64-b1]"
    record = benchmark["extra_info"]["bitgate"]
    assert record["execution"]["threads"] == 1
    assert record["metrics"]["packed_layers"]["value"] == 14
    assert record["metrics"]["speedup"]["value"] > 0
    # steps of a model this small are grouped until they are long enough to time
    assert benchmark["stats"]["median"] > 0.03
    assert (project.path / "runs/one.parquet").exists()


def test_nan_logits_fail(project):
    (project.path / "conftest.py").write_text(
        'pytest_plugins = ["bitgate.plugin"]\n'
        "from bitgate.kernels.int4_linear import Int4Linear\n"
        "forward = Int4Linear.forward\n"
        "Int4Linear.forward = lambda self, x: forward(self, x) * float('nan')\n"
    )
    done = project.run("-k", "w4g64 and words")
    assert done.returncode == 1
    assert "perplexity_ratio nan" in done.stdout
    assert "is not a finite number" in done.stdout
    # the likeliest of all NaN is token 0: that must be no expected failure either, nor does it take
    # a rule for NaN to be wrong
    (project.path / "collapse.toml").write_text(
        '[[gate]]\nname = "known"\nmatch = { bits = 4 }\n'
        'require.top1_agreement = { min = 0.9, expect = "fail", reason = "collapses" }\n'
    )
    expected = project.run("-k", "w4g64 and words", "--thresholds", "collapse.toml")
    assert expected.returncode == 1
    assert "top1_agreement nan" in expected.stdout
    (project.path / "nothing.toml").write_text("")
    assert project.run("-k", "w4g64 and words", "--thresholds", "nothing.toml").returncode == 1


def test_a_silent_fallback_fails(project):
    (project.path / "conftest.py").write_text(
        'pytest_plugins = ["bitgate.plugin"]\n'
        "import torch\n"
        "from bitgate.kernels import cpu_int4\n"
        "def pack(weight, bias):\n"
        "    rows, columns = weight.codes.shape\n"
        "    layer = torch.nn.Linear(columns, rows, bias=False)\n"
        "    return layer.requires_grad_(False)\n"
        "cpu_int4.pack = pack\n"
    )
    done = project.run("-k", "quantize and w4g64", "--thresholds", "thresholds.toml")
    assert done.returncode == 1
    assert "packed_layers 0" in done.stdout


def test_what_the_budget_has_no_room_for_is_inconclusive(project):
    (project.path / "fixtures" / "costs.toml").write_text(
        '[seconds]\n"quantize[llama-tiny-hqq-w8g64]" = 3600\n'
    )
    done = project.run("-k", "quantize and w8", "--budget", "1")
    assert done.returncode == 0
    assert "1 skipped" in done.stdout
    assert "not measured: it needs about 3600 s" in done.stdout
    assert "? inconclusive" in done.stdout
    red = project.run("-k", "quantize and w8", "--budget", "1", "--fail-inconclusive")
    assert red.returncode == 1


def test_a_case_that_breaks_is_in_the_table(project):
    """With the one sentence that says why, and without how it came about."""
    (project.path / "fixtures" / "models.toml").write_text(
        '[model.llama-tiny]\nfamily = "llama"\nsource = { kind = "local", path = "../gone" }\n'
    )
    done = project.run("-k", "w8g64")
    assert done.returncode == 1
    assert "✗ FAIL" in done.stdout
    assert "there is no " in done.stdout
    assert "Traceback" not in done.stdout
    assert "def load_model" not in done.stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [("--device", "tpu"), ("--device", "mps"), ("--threads", "-3"), ("--budget", "0")],
)
def test_options_that_make_no_sense(project, option, value):
    done = project.run(f"{option}={value}")
    assert done.returncode == 4
    assert f"argument {option}: expected" in done.stderr


def test_the_options_of_pytest_benchmark(project):
    disabled = project.run("--benchmark-disable", "-k", "quantize and w8")
    assert disabled.returncode == 0, disabled.stdout
    assert "1 passed" in disabled.stdout
    assert project.saved() == []
    skipped = project.run("--benchmark-skip", "-k", "quantize and w8")
    assert "1 skipped" in skipped.stdout


def test_the_gate_is_used_once(project):
    (project.path / "bench" / "test_twice.py").write_text(
        "import pytest\n"
        "from bitgate.measure.quantization import quantization\n"
        '@pytest.mark.workload("quantize")\n'
        "def test_twice(cell, model, execution, shelf, benchmark, gate):\n"
        "    for _ in range(2):\n"
        "        measured = quantization(model, cell.recipe, execution, shelf.keep)\n"
        "        gate.decide(benchmark, measured)\n"
    )
    done = project.run("-k", "twice and w8")
    assert done.returncode == 1
    assert "Fixture can only be used once" in done.stdout


def interrupted(project, when, *options):
    """What is printed, if Ctrl-C is pressed as soon as a line has this."""
    process = subprocess.Popen(
        project.command("--benchmark-autosave", "-v", *options),
        cwd=project.path,
        env={**project.environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if when in line:
            process.send_signal(signal.SIGINT)
            break
    seen += process.stdout.readlines()
    assert process.wait(60) == 2, "".join(seen)  # pytest's exit status for an interrupt
    return "".join(seen)


BEGUN = """
import time
import pytest

class Begun:
    least = 1
    def batches(self):
        print("begun", flush=True)
        time.sleep(60)
        yield

@pytest.mark.workload("quantize")
def test_quantize(case, benchmark, gate):
    gate.decide(benchmark, Begun())
"""


def test_an_interrupt_before_anything_is_measured_saves_nothing(project):
    (project.path / "bench/test_quantize.py").write_text(BEGUN)
    said = interrupted(project, "begun", "-s")
    assert not project.saved()
    assert "parquet" not in said


def test_an_interrupt_loses_nothing_that_was_measured(project):
    interrupted(project, "PASSED")
    (saved,) = project.saved()
    assert "quantize[llama-tiny-hqq-w8g64]" in records(saved)
    assert saved.with_suffix(".parquet").exists()
