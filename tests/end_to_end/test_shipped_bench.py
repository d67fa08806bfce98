"""The shipped benchmarks on the packaged model and text: fetched, quantized and gated for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.real


def test_round_to_nearest_is_caught_by_the_bound_that_hqq_meets(tmp_path):
    """One cell of the default matrix, in a process of its own, against the shipped gates."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "bench",
                "-k",
                "rtn and smollm2 and (quantize or enwiki)",
            ),
            f"--benchmark-storage={tmp_path}",
            f"--benchmark-json={tmp_path / 'run.json'}",
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    benchmarks = json.loads((tmp_path / "run.json").read_text())["benchmarks"]
    records = {b["extra_info"]["bitgate"]["case"]: b["extra_info"]["bitgate"] for b in benchmarks}
    recipe = "llama-smollm2-135m-hqq-w4g64-rtn-dequantize"
    quality = records[f"perplexity[{recipe}-enwiki]"]
    assert quality["outcome"] == "expected-fail"
    metrics = quality["metrics"]
    assert metrics["perplexity_ratio"]["value"] == pytest.approx(1.276, abs=0.01)
    assert metrics["kl_divergence"]["value"] == pytest.approx(0.382, abs=0.005)
    assert metrics["base_perplexity"]["value"] == pytest.approx(30.76, abs=0.05)
    size = records[f"quantize[{recipe}]"]["metrics"]
    # four-bit codes, two fp32 numbers per group, embeddings and norms in fp32
    assert size["size_mib"]["expected"] == size["size_mib"]["value"]
    assert size["size_mib"]["expected"] == pytest.approx(171.415 + 0.095, abs=0.001)  # a header
    assert size["reload_difference"]["value"] == 0
    assert size["packed_layers"]["value"] == 210
