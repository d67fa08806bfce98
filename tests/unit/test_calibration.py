"""Calibrations: kept, read, found for the hardware at hand, and refused where they are wrong."""

import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from bitgate import quantize
from bitgate.catalog import Case, CatalogError, Cell, Execution, load_entries
from bitgate.measure import calibration
from bitgate.measure.calibration import GENERAL, Calibration, Calibrations, keep, summed_up
from bitgate.measure.processes import ASSUMED

OWN = "decode[llama-tiny-hqq-w4g64-b1]"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """A processor of four cores."""
    monkeypatch.setattr(calibration, "hardware", lambda device: f'A "fast" {device.upper()}')
    monkeypatch.setattr(calibration, "cores", lambda: 4)


def entry(**changes):
    fields = {
        "hardware": 'A "fast" CPU',
        "cores": 4,
        "device": "cpu",
        "threads": 1,
        "case": GENERAL,
        "ratio": 0.03,
        "seconds": 0.2,
        "launches": 10,
        "date": date(2026, 11, 22),
        "host": "ci-1",
    }
    return Calibration(**{**fields, **changes})


def execution(**changes):
    fields = {"device": "cpu", "dtype": "float32", "threads": 1, "kernel": "cpu-int4"}
    return Execution(**{**fields, **changes})


# --- files ---------------------------------------------------------------------------------


def test_what_is_kept_is_read(tmp_path):
    path = tmp_path / "new" / "calibration.toml"
    one, other = entry(), entry(case=OWN, ratio=1e-5, cpu_ratio=1e-6, host="ci-é")
    keep(path, one)
    keep(path, other)
    assert Calibrations.read(path).entries == {one.key: one, other.key: other}
    assert path.read_text().startswith("# How much processes differ")


def test_the_same_case_on_the_same_hardware_is_replaced(tmp_path):
    path = tmp_path / "calibration.toml"
    keep(path, entry())
    keep(path, entry(ratio=0.07, launches=5))
    (kept,) = Calibrations.read(path).entries.values()
    assert (kept.ratio, kept.launches) == (0.07, 5)
    assert list(tmp_path.iterdir()) == [path]


def test_the_project_knows_better_than_the_user(tmp_path):
    mine, theirs = tmp_path / "mine.toml", tmp_path / "theirs.toml"
    keep(mine, entry(ratio=0.01))
    keep(mine, entry(case=OWN, ratio=0.02))
    keep(theirs, entry(ratio=0.04))
    known = Calibrations.read(mine, theirs)
    assert known.spread(execution(), "decode[other]").ratio.deviation == 0.04
    assert known.spread(execution(), OWN).ratio.deviation == 0.02


def test_no_file_is_no_calibration(tmp_path):
    assert Calibrations.read(tmp_path / "calibration.toml").entries == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[calibration", "calibration.toml: not valid TOML"),
        ("[calibrations]\n", "calibrations: unknown table; did you mean 'calibration'?"),
        ("[calibration]\nratio = 1\n", "calibration: expected [[calibration]] tables"),
        ("calibration = [1]\n", "[[calibration]] number 1"),
        ("[[calibration]]\nratio = 0.1\n", "number 1: hardware: this key is missing"),
        ("ratio = nan\n", "number 1: ratio: "),
        ("ratio = 0\n", "number 1: ratio: "),
        ("ratio = -0.1\n", "number 1: ratio: "),
        ('ratio = "5 %"\n', "number 1: ratio: "),
        ("launches = 2\n", "number 1: launches: "),
        ("launches = 3.5\n", "number 1: launches: "),
        ('date = "yesterday"\n', "number 1: date: "),
        ('device = "tpu"\n', "number 1: device: "),
        ("spread = 0.1\n", "number 1: spread: unknown key"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path, text, message):
    path = tmp_path / "calibration.toml"
    if "calibration" in text:
        path.write_text(text)
    else:  # one key of a sound entry
        keep(path, entry())
        name = text.partition(" ")[0]
        lines = [li for li in path.read_text().splitlines(True) if not li.startswith(f"{name} =")]
        path.write_text("".join(lines) + text)
    with pytest.raises(CatalogError) as caught:
        Calibrations.read(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_it_is_kept_in_the_users_data(monkeypatch, tmp_path):
    monkeypatch.setenv("BITGATE_DATA", str(tmp_path))
    assert calibration.user_file() == tmp_path / "calibration.toml"
    monkeypatch.delenv("BITGATE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert calibration.user_file().is_relative_to(tmp_path)
    assert "cache" not in str(calibration.user_file()).lower().removeprefix(str(tmp_path).lower())


# --- which one holds -----------------------------------------------------------------------


def known(*entries):
    return Calibrations({one.key: one for one in entries})


def test_a_spread_says_where_it_comes_from():
    spread = known(entry()).spread(execution(), OWN)
    assert (spread.ratio.deviation, spread.seconds.deviation) == (0.03, 0.2)
    assert spread.ratio.launches == spread.seconds.launches == 10
    assert spread.ratio.source == "calibrated on 2026-11-22, 10 launches"


@pytest.mark.parametrize(
    "other",
    [
        {"hardware": "A slow CPU"},
        {"cores": 8},
        {"threads": 2},
        {"device": "cuda"},
        {"case": "decode[another-case-b1]"},
    ],
)
def test_other_hardware_tells_nothing(other):
    assert known(entry(**other)).spread(execution(), OWN) is ASSUMED
    assert known(entry(**other), entry()).spread(execution(), OWN).ratio.deviation == 0.03


def test_a_host_is_no_hardware():
    assert known(entry(host="another")).spread(execution(), OWN).ratio.deviation == 0.03


def test_an_accelerator_is_known_whatever_its_number():
    gpu = entry(device="cuda", hardware='A "fast" CUDA:1', threads=4)
    spread = known(gpu).spread(execution(device="cuda:1", threads=4), OWN)
    assert spread.ratio.deviation == 0.03


def test_without_calibrations_nobody_asks_for_the_hardware(monkeypatch):
    monkeypatch.setattr(calibration, "hardware", None)
    assert known().spread(execution(), OWN) is ASSUMED


# --- summing up ----------------------------------------------------------------------------


def test_launches_are_summed_up():
    rng = np.random.default_rng(0)
    ratio, pace = rng.normal(0.7, 0.05, 12), rng.normal(0, 0.3, 12)
    items = {
        "launch": np.repeat(np.arange(12), 8),
        "tokens": np.full(96, 4),
        "seconds": 0.05 * np.exp(np.repeat(pace, 8)),
        "base_seconds": 0.05 * np.exp(np.repeat(pace + ratio, 8)),
    }
    found = summed_up(OWN, execution(threads=2), items, "ci-1")
    assert found.ratio == pytest.approx(ratio.std(ddof=1))
    assert found.seconds == pytest.approx(max(pace.std(ddof=1), (pace + ratio).std(ddof=1)))
    assert (found.launches, found.threads, found.case) == (12, 2, OWN)
    assert found.date == date.today()
    assert math.isfinite(found.ratio)


def test_what_is_calibrated_by_default_is_in_the_catalog():
    catalog = load_entries(Path("no such folder"), quantize.recipe_types())
    cell = Cell(catalog.models[calibration.MODEL], catalog.recipes[calibration.RECIPE])
    assert Case(cell, calibration.WORKLOAD, "commit").key == GENERAL
