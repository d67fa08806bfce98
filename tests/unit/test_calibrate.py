"""`bitgate calibrate`, without processes: what it is asked for, and when it is interrupted."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bitgate.catalog import Execution
from bitgate.cli import main
from bitgate.measure import calibration, launches
from bitgate.measure.calibration import GENERAL, Calibrations
from bitgate.measure.launch import Job
from bitgate.measure.launches import LaunchError
from bitgate.measure.measurement import Batch
from bitgate.sources import reporting_to

FIXTURES = str(Path(__file__).parents[2] / "fixtures")
SPEEDUPS = (2.0, 2.1, 1.9, 2.05, 1.98)


@pytest.fixture
def calibrate(tmp_path, monkeypatch):
    """Runs the command with launches that see what is given; an exception ends them."""
    monkeypatch.setenv("BITGATE_DATA", str(tmp_path))
    asked = []

    def prepared(case, device, folder, threads=1):
        asked.append((case, device))
        execution = Execution(device, "float32", case.workload.threads or threads, "cpu-int4")
        return Job(
            model=case.cell.model,
            method="hqq",
            quantized=folder / "model.safetensors",
            execution=execution,
            workload=case.workload,
            pairs=8,
        )

    def run(*arguments, seen=SPEEDUPS):
        def batches(self):
            for number, what in zip(range(self.limit), seen, strict=False):
                if isinstance(what, BaseException):
                    raise what
                base = 0.1 * what
                columns = {"seconds": 0.1, "base_seconds": base, "tokens": 4}
                columns |= {"cpu_seconds": 0.1, "base_cpu_seconds": base**2}  # twice the spread
                items = {name: [value] * 8 for name, value in columns.items()}
                yield Batch(items["seconds"], {**items, "launch": [number] * 8})

        monkeypatch.setattr(launches, "prepared", prepared)
        monkeypatch.setattr(launches.Launches, "batches", batches)
        words = ["calibrate", "--catalog", FIXTURES, "--device", "cpu", *arguments]
        with reporting_to(lambda report: None):  # or pytest's own output comes in between
            return CliRunner().invoke(main, words), asked

    return run


def test_what_was_seen_is_told_and_kept(calibrate, tmp_path):
    done, ((case, device),) = calibrate("--launches", "4")
    assert done.exit_code == 0, done.output
    assert (case.key, device) == (GENERAL, "cpu")
    assert "launch 2: speedup 2.100, steps of 100 ms" in done.stdout
    assert GENERAL in done.stdout
    assert f"kept in {tmp_path / 'calibration.toml'}" in done.stdout
    (entry,) = Calibrations.read(tmp_path / "calibration.toml").entries.values()
    assert entry.launches == 4
    assert entry.threads == 1
    assert f"{100 * entry.ratio:.1f} %" in done.stdout
    assert entry.cpu_ratio == pytest.approx(2 * entry.ratio)
    assert f"paired ratio, CPU clock  {100 * entry.cpu_ratio:.1f} %" in done.stdout
    assert "  cpu_speedup: " in done.stdout
    needed = next(line for line in done.stdout.splitlines() if line.startswith("  speedup: "))
    assert [part.split(" for ")[1] for part in needed.split(": ")[1].split(", ")] == [
        *("10 %", "5 %", "2 %")
    ]


@pytest.mark.parametrize(
    ("arguments", "key", "threads"),
    [
        (("--workload", "b1"), "decode[llama-3.2-1b-2-layers-hqq-w4g64-head4-rtn-b1]", 1),
        (("--workload", "prefill.p128"), None, 1),
        (("--threads", "2"), GENERAL, 2),
        (
            ("--model", "llama-smollm2-135m", "--recipe", "hqq-w4g64", "--workload", "b1"),
            "decode[llama-smollm2-135m-hqq-w4g64-b1]",
            1,
        ),
    ],
)
def test_what_is_asked_for_is_calibrated(calibrate, tmp_path, arguments, key, threads):
    done, ((case, _),) = calibrate(*arguments, "--output", str(tmp_path / "out.toml"))
    assert done.exit_code == 0, done.output
    assert key in (None, case.key)
    (entry,) = Calibrations.read(tmp_path / "out.toml").entries.values()
    assert (entry.case, entry.threads) == (case.key, threads)


def test_ctrl_c_keeps_what_was_done(calibrate, tmp_path):
    done, _ = calibrate(seen=(*SPEEDUPS[:3], KeyboardInterrupt()))
    assert done.exit_code == 2
    assert "interrupted" in done.stderr
    (entry,) = Calibrations.read(tmp_path / "calibration.toml").entries.values()
    assert entry.launches == 3


def test_ctrl_c_too_early_keeps_nothing(calibrate, tmp_path):
    done, _ = calibrate(seen=(*SPEEDUPS[:2], KeyboardInterrupt()))
    assert done.exit_code == 2
    assert "fewer than 3 launches" in done.stderr
    assert not (tmp_path / "calibration.toml").exists()


def test_a_launch_that_fails_fails_it(calibrate, tmp_path):
    done, _ = calibrate(seen=(*SPEEDUPS[:3], LaunchError("launch 4 was killed")))
    assert done.exit_code == 1
    assert "ERROR: launch 4 was killed" in done.stderr
    assert not (tmp_path / "calibration.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workload", "b2"), "--workload: nothing is called 'b2'; "),
        (("--model", "llama-smollm2"), "--model: nothing is called 'llama-smollm2'; did you mean"),
        (("--recipe", "hqq"), "--recipe: nothing is called 'hqq'; "),
        (("--device", "tpu"), "--device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (("--device", "cuda:99"), "--device cuda:99: torch finds"),
    ],
)
def test_what_is_not_there_cannot_be_calibrated(calibrate, arguments, message):
    done, asked = calibrate(*arguments)
    assert done.exit_code == 4, done.output
    assert message in done.stderr
    assert not asked


def test_two_launches_tell_nothing(calibrate):
    done, asked = calibrate("--launches", "2")
    assert done.exit_code == 2
    assert "2 is not in the range" in done.stderr
    assert not asked


def test_a_file_that_is_wrong_is_said_to_be_first(calibrate, tmp_path):
    (tmp_path / "calibration.toml").write_text("[[calibration]]\nratio = 0.1\n")
    done, asked = calibrate()
    assert done.exit_code == 4
    assert "number 1: hardware: this key is missing" in done.stderr
    assert not asked


def test_outside_of_a_project(calibrate, tmp_path):
    done, ((case, _),) = calibrate("--catalog", str(tmp_path / "nothing"))
    assert done.exit_code == 0, done.output
    assert case.key == GENERAL
    assert calibration.hardware("cpu")
