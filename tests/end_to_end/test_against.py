"""Runs against earlier runs, in real processes: what is red, what is said, and what is saved."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

#: 4-bit layers answer with noise of their own, the same in every process
WORSE = (
    "import torch\n"
    "from bitgate.kernels.int4_linear import Int4Linear\n"
    "forward = Int4Linear.forward\n"
    "def noisy(self, x):\n"
    "    y = forward(self, x)\n"
    "    return y + 0.3 * y.std() * torch.randn(y.shape, "
    "generator=torch.Generator().manual_seed(0))\n"
    "Int4Linear.forward = noisy\n"
)
#: 4-bit layers work three times
SLOWER = (
    "from bitgate.kernels.int4_linear import Int4Linear\n"
    "forward = Int4Linear.forward\n"
    "Int4Linear.forward = lambda self, x: [forward(self, x) for _ in range(3)][0]\n"
)
PLUGIN = 'pytest_plugins = ["bitgate.plugin"]\n'
DECODE = "decode[llama-tiny-hqq-w4g64-b1]"


def said(done):
    """What a process printed, whichever way it was wrapped."""
    return " ".join(done.stdout.split())


def outcomes(path):
    content = json.loads(path.read_text())
    records = [b["extra_info"]["bitgate"] for b in content["benchmarks"]]
    return {record["case"]: record for record in records}, content["bitgate"]


def test_a_reference_that_is_not_there_is_refused_before_anything_is_measured(project):
    for workers in ("0", "2"):
        done = project.run("--against", "latest", "-n", workers)
        assert done.returncode == 4, done.stdout + done.stderr
        assert "--against latest: no saved run has passed" in done.stderr
        assert "passed" not in done.stdout


def test_worse_quality_is_red_and_no_reference(project):
    first = project.run("-k", "words", "--benchmark-autosave")
    assert first.returncode == 0, first.stdout
    (project.path / "conftest.py").write_text(PLUGIN + WORSE)
    worse = project.run("-k", "words", "--benchmark-autosave", "--against", "latest", "-n", "2")
    assert worse.returncode == 1, worse.stdout
    assert "1 failed, 2 passed" in worse.stdout
    assert re.search(
        r"✗ FAIL perplexity\[llama-tiny-hqq-w4g64-words\]: kl_divergence \S+ is \S+ worse than \S+ "
        r"in 0001 \(98 % interval of the change \+\S+ to \+\S+, Student t over 32 paired windows",
        said(worse),
    )
    assert "FAILED bench/test_perplexity.py::test_perplexity[llama-tiny-hqq-w4g64-words]" in (
        worse.stdout
    )
    records, told = outcomes(project.saved()[-1])
    assert records["perplexity[llama-tiny-hqq-w8g64-words]"]["outcome"] == "pass"
    record = records["perplexity[llama-tiny-hqq-w4g64-words]"]
    assert record["outcome"] == "fail"
    assert {v["gate"] for v in record["verdicts"]} >= {"against latest", "quality"}
    assert list(told["failed"]) == ["perplexity[llama-tiny-hqq-w4g64-words]"]
    assert max(len(json.dumps(record)) for record in records.values()) < 8000

    refused = project.run("-k", "words", "--against", "0002")
    assert refused.returncode == 4
    assert "0002 is no reference, as it did not pass" in refused.stderr
    (project.path / "conftest.py").write_text(PLUGIN)
    good = project.run("-k", "words", "--against", "latest")
    assert good.returncode == 0, good.stdout
    assert "bitgate: against latest, 0001" in good.stdout
    assert "against latest: 10 unchanged, 2 recorded" in good.stdout


@pytest.mark.slow
def test_a_resumed_run_is_compared_whole(project):
    assert project.run("-k", "words", "--benchmark-autosave").returncode == 0
    die = "import os\ndef pytest_runtest_logfinish():\n    if os.environ.get('DIE'): os._exit(9)\n"
    (project.path / "conftest.py").write_text(PLUGIN + WORSE + die)
    killed = subprocess.run(
        project.command("-k", "words", "--against", "latest"),
        cwd=project.path,
        env={**project.environment(), "DIE": "1"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == 9
    done = project.run("-k", "words", "--against", "latest", "--resume")
    assert done.returncode == 1, done.stdout
    assert "1 tests are finished" in done.stdout
    assert "against latest: 2 regressions, 2 inconclusive, 6 unchanged" in done.stdout


def test_a_test_that_breaks_after_its_verdict_is_no_pass(project):
    path = project.path / "bench" / "test_quantize.py"
    path.write_text(path.read_text() + "    raise RuntimeError('afterwards')\n")
    done = project.run("-k", "quantize and w8", "--benchmark-autosave")
    assert done.returncode == 1
    assert "✗ FAIL quantize[llama-tiny-hqq-w8g64]: RuntimeError: afterwards" in done.stdout
    assert "✓ pass" not in done.stdout
    records, told = outcomes(project.saved()[-1])
    assert records["quantize[llama-tiny-hqq-w8g64]"]["outcome"] == "fail"
    assert told["failed"] == {"quantize[llama-tiny-hqq-w8g64]": "RuntimeError: afterwards"}


def remembered(project, factor, runs=8):
    """Copies of the one saved run as its history, in which 4 bits were so many times as fast."""
    (path,) = project.saved()
    content = json.loads(path.read_text())
    for number in range(1, runs + 1):
        for benchmark in content["benchmarks"]:
            metrics = benchmark["extra_info"]["bitgate"]["metrics"]
            for name in {"speedup", "cpu_speedup"} & metrics.keys():
                value = metrics[name].setdefault("first", metrics[name]["value"])
                metrics[name]["value"] = value * factor * (1.02 if number % 2 else 0.98)
        content["datetime"] = f"2020-01-{number:02}T00:00:00"
        path.with_name(f"{number:04}_copy.json").write_text(json.dumps(content))
    path.unlink()


@pytest.mark.slow
def test_a_speed_is_measured_again_before_it_is_red(project):
    decode = ("--cadence", "nightly", "-k", "decode")
    assert project.run(*decode, "--benchmark-autosave", seconds=900).returncode == 0
    remembered(project, 3.0)
    saved = len(project.saved())
    slower = project.run(*decode, "--against", "latest", "--junit-xml=report.xml", seconds=900)
    assert slower.returncode == 1, slower.stdout
    assert "measuring again, in a fresh process: bench/test_decode.py" in slower.stdout
    assert re.search(
        r"✗ FAIL decode\S+: speedup \S+ is \S+ % worse than \S+ expected from history .*prediction "
        r"from 8 runs.*: \S+ at first, \S+ in a fresh process",
        said(slower),
    )
    # the fresh process leaves nothing behind
    assert len(project.saved()) == saved
    assert not (project.path / ".benchmarks" / "unfinished.jsonl").exists()
    report = (project.path / "report.xml").read_text()
    assert 'failures="1"' in report
    assert "in a fresh process" in report


@pytest.mark.slow
def test_a_slow_first_measurement_alone_is_not_red(project):
    # in the process that has this conftest.py
    decode = ("--cadence", "nightly", "-k", "decode", "--launches", "1")
    assert project.run(*decode, "--benchmark-autosave", seconds=900).returncode == 0
    remembered(project, 1.0)
    # slow only here: the fresh process knows by its environment that it is one
    (project.path / "conftest.py").write_text(
        f"import os\n{PLUGIN}if 'BITGATE_AGAIN' not in os.environ:\n"
        + "".join(f"    {line}\n" for line in SLOWER.replace("3", "30").splitlines())
    )
    done = project.run(
        *decode, "--against", "latest", "-n", "1", "--benchmark-json=now.json", seconds=900
    )
    assert done.returncode == 0, done.stdout
    assert "measuring again" in done.stdout, done.stdout
    records, _ = outcomes(project.path / "now.json")
    told = " ".join(verdict["text"] for verdict in records[DECODE]["verdicts"])
    first, second = re.search(r"(\S+) at first, (\S+) in a fresh process", told).groups()
    assert float(first) < float(second) / 3


@pytest.mark.slow
def test_accepted_baselines_are_always_compared_with(project):
    bitgate = [sys.executable, "-c", "from bitgate.cli import main; main()"]

    def accept(*arguments):
        return subprocess.run(
            [*bitgate, "accept", *arguments],
            cwd=project.path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert project.run("-k", "words", "--benchmark-autosave").returncode == 0
    accepted = accept("0001", "--reason", "the first")
    assert accepted.returncode == 0, accepted.stderr
    assert "accepted 2 cases of 0001" in accepted.stdout
    assert (project.path / "accepted.json").is_file()
    (project.path / "conftest.py").write_text(PLUGIN + WORSE)
    # a run that was not compared, and so passed, becomes the latest one
    assert project.run("-k", "words", "--benchmark-autosave").returncode == 0
    done = project.run("-k", "words", "--against", "latest")
    assert done.returncode == 1, done.stdout
    assert "against latest: 10 unchanged" in done.stdout
    assert "against accepted: 2 regressions" in done.stdout
    assert "[against accepted]" in done.stdout
    again = accept("0002", "--reason", "noise is fine", "-k", "*w4*")
    assert again.returncode == 0
    assert "regression" in again.stdout
    assert project.run("-k", "words", "--against", "accepted").returncode == 0
