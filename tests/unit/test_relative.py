"""`bitgate show --relative`: what each recipe changes, in percent of the base."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from bitgate.cli import main
from bitgate.history.schema import Value
from bitgate.metric import Metric
from bitgate.report.relative import change

pytest_plugins = ["pytester"]


def value(number, **changes):
    return Value(value=number, unit="s", better="lower", interval="exact", **changes)


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (24.61, 7.27, "-70.5 %"),  # LLaMA-2-7B to 8 bits, GB
        (637.0, 2043.0, "+220.7 %"),  # the same one by one, s
        (13.16, 13.16, "+0.0 %"),
        (13.16, 215879.0, "× 1.64e+04"),
        (0.0, 1.0, "–"),
        (1.0, float("nan"), "–"),
    ],
)
def test_a_change_is_in_percent_of_the_base(then, now, said):
    assert change(value(now), value(then)) == said


@pytest.fixture
def run(runs):
    """Of two recipes, of which one has no energy at batch 32."""

    def case(kind, recipe, batch, *metrics):
        key = f"{kind}[m-{recipe}{f'-b{batch}' if batch else ''}]"
        record, columns = runs.sizes(key, size_mib=1.0)
        record["metrics"] = {metric.name: metric.record() for metric in metrics}
        workload = {"kind": kind, "name": f"b{batch}" if batch else ""}
        record["workload"] = {**workload, **({"batch": batch} if batch else {})}
        return {**record, "model": "m", "recipe": {"name": recipe, "method": "hqq"}}, columns

    def energy(recipe, batch, kwh, base):
        by = {"by": "modelled: constants", "modelled": True}
        return case(
            "energy",
            recipe,
            batch,
            Metric("evaluate_kwh", kwh, **by),
            Metric("base_evaluate_kwh", base, **by),
            Metric("evaluate_seconds", 50.0),
            Metric("base_evaluate_seconds", 40.0),
            Metric("quantize_kwh", 2e-6, **by),
        )

    sizes = [Metric("size_mib", 100.0), Metric("base_size_mib", 400.0)]
    peak = [Metric("peak_evaluate_mib", 150.0), Metric("base_peak_evaluate_mib", 300.0)]
    return runs.save(
        case("quantize", "hqq-w4g64", 0, *sizes, Metric("quantize_seconds", 7.0)),
        case("memory", "hqq-w4g64", 32, *peak),
        energy("hqq-w4g64", 32, 3e-6, 2e-6),
        energy("hqq-w4g64", 1, 5e-6, 4e-6),
        energy("hqq-w8g64", 1, 2e-6, 4e-6),
    )


@pytest.fixture
def show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, ["show", "--history", "runs", "--relative", *arguments])

    return run


def test_rows_are_quantities_and_columns_are_recipes(run, show):
    lines = show("--format", "markdown").output.splitlines()
    assert "### m" in lines
    rows = [line for line in lines if line.startswith("| ")]
    assert rows == [
        "| relative to the base | hqq-w4g64 | hqq-w8g64 |",
        "| --- | ---: | ---: |",
        "| size of the file | -75.0 % | – |",
        "| peak memory, batch 32 | -50.0 % | – |",
        "| evaluation time, batch 1 | +25.0 % | +25.0 % |",
        "| evaluation time, batch 32 | +25.0 % | – |",
        "| energy of evaluation, batch 1 | ≈ +25.0 % | ≈ -50.0 % |",
        "| energy of evaluation, batch 32 | ≈ +50.0 % | – |",
        "| quantization | 7 s | – |",
        "| energy of quantization | ≈ 2 mWh | ≈ 2 mWh |",
    ]
    assert lines[-1] == "- energy: modelled: constants"


def test_workloads_of_one_batch_are_told_apart_by_their_names(runs, show):
    def case(name, batch, peak):
        record, columns = runs.sizes(f"memory[m-hqq-{name}]", size_mib=1.0)
        metrics = [Metric("peak_evaluate_mib", peak), Metric("base_peak_evaluate_mib", 100.0)]
        record["metrics"] = {metric.name: metric.record() for metric in metrics}
        record["workload"] = {"kind": "memory", "name": name, "batch": batch}
        return {**record, "model": "m", "recipe": {"name": "hqq", "method": "hqq"}}, columns

    runs.save(case("one", 1, 90.0), case("short-b32", 32, 50.0), case("long-b32", 32, 150.0))
    rows = [line for line in show("--format", "markdown").output.splitlines() if "peak" in line]
    assert sorted(rows) == [
        "| peak memory, batch 1 | -10.0 % |",
        "| peak memory, long-b32 | +50.0 % |",
        "| peak memory, short-b32 | -50.0 % |",
    ]


def test_on_the_terminal_the_same(run, show):
    shown = show().output
    assert "peak memory, batch 32" in shown
    assert "≈ -50.0 %" in shown


def test_as_json_there_is_no_such_table(run, show):
    found = show("--format", "json")
    assert found.exit_code == 2
    assert "--relative: as JSON" in found.output
