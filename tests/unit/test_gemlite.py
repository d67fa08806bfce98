"""gemlite, which runs on GPUs: what it takes; and, where it is installed, packing and products
under Triton's interpreter (see interpreted_gemlite.py)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitgate import kernels
from bitgate.kernels import REFERENCE, KernelError, NotHereError, choose, gemlite, missing
from bitgate.kernels.affine import Grouping
from bitgate.kernels.extra import Extra

pytest_plugins = ["pytester"]

GOOD, ODD = Grouping(48, 128, 4, 64, 1), Grouping(48, 96, 4, 48, 1)
NOWHERE = Extra("gpu", ("gemlite_nowhere",))
HINT = "kernel gemlite: gemlite_nowhere is not installed: pip install 'bitgate[gpu]'"


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(kernels.EXTRAS, "gemlite", NOWHERE)


@pytest.fixture
def present(monkeypatch):
    monkeypatch.setitem(kernels.EXTRAS, "gemlite", Extra("gpu", ("json",)))


@pytest.fixture(scope="module")
def interpreted():
    """Runs a part of interpreted_gemlite.py; returns what it has seen."""
    if reason := missing("gemlite"):
        pytest.skip(reason)

    def run(part, given=()):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                Path(__file__).with_name("interpreted_gemlite.py"),
                part,
            ],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


# --- what it takes -------------------------------------------------------------------------

#: rows, columns, bits, group size
TAKEN = [
    (48, 128, 8, 64),
    (32, 64, 8, 32),
    (48, 576, 4, 64),  # 9 groups: programs that share them read behind the end
    (48, 96, 4, 32),
    (32, 128, 4, 128),  # one group per row
    (32, 128, 2, 32),
    (32, 128, 1, 64),
]
POWER = "the group size must be a power of two"
#: with what its kernels make of them: wrong numbers, or nothing
REFUSED = [
    ((48, 64, 4, 16), f"{POWER}, 32 at 4 bits or more", "wrong"),
    ((48, 96, 4, 48), f"{POWER}, 32 at 4 bits or more", "wrong"),
    ((48, 64, 8, 16), f"{POWER}, 32 at 8 bits or more", "wrong"),
    ((48, 64, 2, 16), f"{POWER}, 32 at 2 bits or more", "nothing"),
    ((48, 64, 1, 32), f"{POWER}, 64 at 1 bits or more", "nothing"),
]


@pytest.mark.parametrize("shape", TAKEN, ids=str)
def test_what_it_takes(shape):
    assert gemlite.refuses(Grouping(*shape, 1)) is None


@pytest.mark.parametrize(
    ("grouping", "reason"),
    [
        *((Grouping(*shape, 1), reason) for shape, reason, _ in REFUSED),
        (Grouping(48, 128, 3, 64, 1), "it holds codes of 8, 4, 2, 1 bits only"),
        (Grouping(48, 128, 4, 64, 0), "groups must run along the inputs (axis 1)"),
        (Grouping(48, 96, 4, 64, 1), "the group size must divide the 96 inputs"),
    ],
    ids=str,
)
def test_what_it_refuses(grouping, reason):
    assert gemlite.refuses(grouping) == reason


def test_bytes_counted_by_hand():
    """60 bytes of notes; a scale and a zero of 2 bytes, by output, for each group of a row, these
    rounded up to 16."""
    assert gemlite.packed_bytes(Grouping(10, 1024, 4, 64, 1)) == 10 * 512 + 2 * 2 * 10 * 16 + 60
    assert gemlite.packed_bytes(Grouping(10, 2048, 2, 64, 1)) == 10 * 512 + 2 * 2 * 10 * 32 + 60
    assert gemlite.packed_bytes(Grouping(10, 576, 8, 64, 1)) == 10 * 576 + 2 * 2 * 10 * 16 + 60


def test_nothing_heavy_is_imported_to_ask():
    code = (
        "import sys; from bitgate import kernels; from bitgate.kernels.affine import Grouping; "
        "kernels.kernel('gemlite').refuses(Grouping(48, 128, 4, 64, 1)); "
        "print('torch' in sys.modules, 'triton' in sys.modules, 'gemlite' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3


# --- the choice ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_a_gpu_it_is_chosen(present, device):
    assert choose("auto", device, {"a": GOOD}) == "gemlite"
    assert choose("gemlite", device, {"a": GOOD}) == "gemlite"
    assert choose("auto", device, {"a": GOOD, "b": ODD}) == REFERENCE
    assert kernels.passed_over(device) == []
    with pytest.raises(KernelError, match=f"gemlite cannot take b, .*: {POWER}"):
        choose("gemlite", device, {"a": GOOD, "b": ODD})


def test_elsewhere_it_is_not(present):
    assert choose("auto", "cpu", {"a": GOOD}) == "cpu-int4"
    with pytest.raises(KernelError, match="kernel gemlite does not run on cpu"):
        choose("gemlite", "cpu", {"a": GOOD})


def test_where_it_is_missing_it_is_named(absent):
    assert choose("auto", "cuda", {"a": GOOD}) == REFERENCE
    assert kernels.passed_over("cuda:0") == [HINT]
    assert kernels.passed_over("cpu") == []
    with pytest.raises(KernelError, match=re.escape(HINT)):
        choose("gemlite", "cuda", {"a": GOOD})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_layers_that_it_cannot_take_are_named_whatever_is_installed(absent, device):
    with pytest.raises(KernelError, match=f"gemlite cannot take b, .*: {POWER}") as refused:
        choose("gemlite", device, {"a": GOOD, "b": ODD})
    assert not isinstance(refused.value, NotHereError)


@pytest.fixture
def without_gemlite(free_project, pytester):
    """A project of free cases, in which gemlite is never installed."""
    folder = free_project(pytester.path)
    with (folder / "conftest.py").open("a") as file:
        file.write(
            "from bitgate import kernels\n"
            "from bitgate.kernels.extra import Extra\n"
            f"kernels.EXTRAS['gemlite'] = {NOWHERE!r}\n"
        )
    return folder


def test_a_run_on_a_gpu_says_that_auto_does_without_it(without_gemlite, pytester):
    told = f'bitgate: {HINT}; kernel = "auto" serves without it'
    on_gpu = pytester.runpytest_subprocess(
        "bench", "--device", "cuda", "--collect-only", "-q", "-v"
    )
    assert told in on_gpu.outlines
    on_cpu = pytester.runpytest_subprocess("bench", "--device", "cpu", "--collect-only", "-q", "-v")
    assert on_cpu.ret == 0
    assert told not in on_cpu.outlines


def test_a_recipe_that_forces_it_is_a_usage_error_on_a_gpu(without_gemlite, pytester):
    matrix = without_gemlite / "fixtures" / "matrix.toml"
    matrix.write_text(matrix.read_text().replace("hqq-w4g64-dequantize", "hqq-w4g64-gemlite"))
    (without_gemlite / "fixtures" / "recipes.toml").write_text(
        '[[recipe]]\nmethod = "hqq"\nbits = 4\ngroup_size = 64\nkernel = "gemlite"\n'
    )
    done = pytester.runpytest_subprocess("bench", "--device", "cuda")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: recipe hqq-w4g64-gemlite: {HINT}" in done.errlines
    # only what would run has to be there; and on a CPU something else is wrong with it
    for only in (["--device", "cuda", "-k", "not gemlite"], ["--device", "cpu"]):
        assert pytester.runpytest_subprocess("bench", "--collect-only", *only).ret == 0


# --- under the interpreter -----------------------------------------------------------------


def test_packing_is_that_of_hqqs_own_patching_bit_by_bit(interpreted):
    """`prepare_for_inference(backend="gemlite")`; the layer that was packed lives on."""
    seen = interpreted("packing")
    assert len(seen) == 10
    for layer in seen:
        assert layer["same"]
        assert layer["exact class"]
        assert layer["intact"]
        assert layer["bytes"] == layer["predicted"]


def test_products_in_every_configuration_that_may_be_chosen(interpreted):
    """Rounding to float16: of scale times zero, which is added to a product of its size, and of the
    result, each 2^-11 at most of what is up to a few times as large as the result."""
    for shape, worst in zip(TAKEN, interpreted("numerics", TAKEN), strict=True):
        assert len(worst) == 3, shape
        assert all(0 < error < 2e-3 for error in worst.values()), (shape, worst)


def test_what_is_refused_would_go_wrong(interpreted):
    shapes = [shape for shape, *_ in REFUSED]
    for (shape, _, how), worst in zip(REFUSED, interpreted("numerics", shapes), strict=True):
        if how == "nothing":
            assert any("No valid autotuner configs" in str(e) for e in worst.values()), shape
        else:
            assert any(not isinstance(e, str) and not e < 0.05 for e in worst.values()), shape


def test_what_lies_behind_the_scales_does_no_harm(interpreted):
    """gemlite reads there; it does harm to the layer as gemlite makes it."""
    assert interpreted("surrounded") == [False, True]


def test_a_model_served_by_it(interpreted):
    seen = interpreted("model")
    assert seen["kernel on a GPU"] == "gemlite"
    assert seen["packed"] == seen["expected"] == seen["reference counts"] == 7
    assert seen["memory"] == seen["predicted"]
    assert 0 < seen["error"] < 5e-3
    assert seen["decoded"] == seen["decoded by the reference"]
    assert seen["intact"]
