"""`bitgate show`: a run as one table."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from rich.console import Console

from bitgate.cli import main
from bitgate.history.cells import cells_of, front
from bitgate.history.saved import read_run
from bitgate.history.store import Reference
from bitgate.metric import Metric
from bitgate.report import table

pytest_plugins = ["pytester"]


class Cells:
    """Cases of made-up cells of model `m`."""

    def __init__(self, runs):
        self.runs = runs

    def named(self, made, recipe, **changes):
        record, columns = made
        method, _, bits = recipe.partition("-w")
        said = {"name": recipe, "method": method, **({"bits": int(bits[0])} if bits else {})}
        return {**record, "model": "m", "recipe": said, **changes}, columns

    def size(self, recipe, mib, base=400.0, seconds=5.0, **changes):
        exact = {"size_mib": mib, "base_size_mib": base, "memory_mib": mib + 1}
        exact["quantize_seconds"] = seconds
        return self.named(self.runs.sizes(f"quantize[m-{recipe}]", **exact), recipe, **changes)

    def quality(self, recipe, worse, text="text", **changes):
        """Perplexity is exp(`worse`) times the base's."""
        base = [300.0 + number % 3 for number in range(32)]
        nll = [value + 100 * worse for value in base]
        made = self.runs.quality(
            nll, f"perplexity[m-{recipe}-{text}]", base=base, kl=[100 * worse] * 32
        )
        made[0]["workload"] = {"kind": "perplexity", "name": text}
        return self.named(made, recipe, **changes)

    def speed(self, recipe, speedup, phase="b1", **changes):
        made = self.runs.speed(speedup, f"decode[m-{recipe}-{phase}]")
        made[0]["workload"] = {"kind": "decode", "name": phase}
        return self.named(made, recipe, **changes)


@pytest.fixture
def cells(runs):
    return Cells(runs)


@pytest.fixture
def show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, ["show", *arguments, "--history", "runs"])

    return run


@pytest.fixture
def methods(cells):
    """A run of three methods: one is larger and worse than another."""
    return cells.runs.save(
        cells.size("hqq-w4g64", 160.0),
        cells.quality("hqq-w4g64", 0.20),
        cells.speed("hqq-w4g64", 1.5),
        cells.size("gptq-w4g64", 150.0, seconds=250.0),
        cells.quality("gptq-w4g64", 0.10),
        cells.speed("gptq-w4g64", 1.4),
        cells.size("hqq-w8g64", 210.0),
        cells.quality("hqq-w8g64", 0.001),
        cells.speed("hqq-w8g64", 0.9),
    )


def rows(text):
    """The lines of a Markdown table by recipe, the diamond as a column of its own."""
    out = {}
    for line in text.splitlines():
        found = re.match(r"\| (◆ )?([a-z0-9]+-\S+) \|(.*)\|$", line)
        if found:
            columns = [part.strip() for part in found[3].split("|")]
            out[found[2]] = bool(found[1]), *columns
    return out


def test_one_row_per_cell_with_what_it_costs_and_keeps(show, methods):
    done = show("--format", "markdown")
    assert done.exit_code == 0, done.output
    found = rows(done.output)
    assert list(found) == ["gptq-w4g64", "hqq-w4g64", "hqq-w8g64"]  # by size
    on_front, method, kernel, bits, mib, share, ratio, kl, top1, speed, memory, seconds, verdict = (
        found["gptq-w4g64"]
    )
    assert (method, kernel, verdict) == ("gptq", "cpu-int4", "✓ pass")
    assert on_front
    assert (bits, mib, share) == ("**12.00**", "**150.0**", "**38 %**")  # 150 / 400 of 32 bits
    assert ratio == "1.105 ± 0.111"  # exp(0.1), and the interval's half-width
    assert kl == "0.1000 ± 0.0100"
    assert top1 == "**80.0 ± 8.0**"  # all are the same: all are the best
    assert speed == "1.40 ± 0.16"
    assert (memory, seconds) == ("**151.0**", "250")
    assert "decode × b1: over the base in float32, eager, 1 thread on cpu" in done.output


def test_the_classes_that_a_library_chose_stand_beside_its_kernel(show, cells):
    record, columns = cells.size("checkpoint-mine", 150.0)
    record["metrics"]["packed_layers"] = Metric("packed_layers", 14, by="TorchLinear").record()
    record["execution"] = {**record["execution"], "kernel": "transformers"}
    cells.runs.save((record, columns))
    found = rows(show("--format", "markdown").output)
    assert found["checkpoint-mine"][2] == "transformers TorchLinear"


def test_the_best_of_each_column_is_bold(show, methods):
    found = rows(show("--format", "markdown").output)
    bold = {
        recipe: [n for n, text in enumerate(columns) if str(text).startswith("**")]
        for recipe, columns in found.items()
    }
    # bits, size, its share, memory | ratio, KL | speed; quantize s of two; top-1 of all
    assert bold == {
        "gptq-w4g64": [3, 4, 5, 8, 10],
        "hqq-w4g64": [8, 9, 11],
        "hqq-w8g64": [6, 7, 8, 11],
    }


def test_a_diamond_for_what_nothing_beats_in_size_and_quality(show, methods):
    found = rows(show("--format", "markdown").output)
    assert {recipe: columns[0] for recipe, columns in found.items()} == {
        "gptq-w4g64": True,
        "hqq-w4g64": False,  # larger and worse than gptq
        "hqq-w8g64": True,
    }


def test_the_front():
    nan = float("nan")
    assert front([(1, 5), (2, 5), (2, 4), (3, 4.5), (1, 6), (nan, 0), (4, nan)]) == {(1, 5), (2, 4)}
    assert front([]) == set()


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("perplexity_ratio", ["hqq-w8g64", "gptq-w4g64", "hqq-w4g64"]),
        ("speedup", ["hqq-w4g64", "gptq-w4g64", "hqq-w8g64"]),
        ("quantize_seconds", ["hqq-w4g64", "hqq-w8g64", "gptq-w4g64"]),
        ("recipe", ["gptq-w4g64", "hqq-w4g64", "hqq-w8g64"]),
    ],
)
def test_sorted_the_best_first(show, methods, sort, order):
    assert list(rows(show("--format", "markdown", "--sort", sort).output)) == order


def test_what_was_not_measured_comes_last(show, cells):
    cells.runs.save(cells.quality("hqq-w2g64", 3.0), cells.size("hqq-w4g64", 160.0))
    for sort in ("size_mib", "speedup"):
        found = rows(show("--format", "markdown", "--sort", sort).output)
        assert list(found) == (
            ["hqq-w4g64", "hqq-w2g64"] if sort == "size_mib" else ["hqq-w2g64", "hqq-w4g64"]
        )
    assert "–" in found["hqq-w4g64"]


def test_what_failed_or_was_skipped_says_why(show, cells):
    missed = {"outcome": "fail", "metric": "perplexity_ratio", "text": "ratio 1.2 is above 1.1"}
    unsure = {"outcome": "inconclusive", "metric": "speedup", "text": "speedup may be below 1.3"}
    absent = [
        {"model": "m", "recipe": {"name": recipe, "method": method}, "why": why, "failed": failed}
        for recipe, method, why, failed in (
            ("nf4-a", "bnb", "bitsandbytes is not installed", False),
            ("nf4-b", "bnb", "bitsandbytes is not installed", False),
            ("hqq-w2g64", "hqq", "RuntimeError: out of memory", True),
        )
    ]
    absent = [{"case": f"quantize[m-{a['recipe']['name']}]", **a} for a in absent]
    cells.runs.save(
        cells.size("hqq-w4g64", 160.0),
        cells.quality("hqq-w4g64", 0.2, outcome="fail", verdicts=[missed]),
        cells.size("hqq-w8g64", 210.0),
        cells.speed("hqq-w8g64", 1.3, outcome="inconclusive", verdicts=[unsure]),
        bitgate={
            "failed": {
                "perplexity[m-hqq-w4g64-text]": "Failed: ratio 1.2 is above 1.1",
                "quantize[m-hqq-w2g64]": "RuntimeError: out of memory",
            },
            "unfinished": 0,
            "absent": absent,
        },
    )
    done = show("--format", "markdown")
    assert done.exit_code == 0, done.output
    verdicts = {recipe: columns[-1] for recipe, columns in rows(done.output).items()}
    assert verdicts == {
        "hqq-w4g64": "✗ FAIL",
        "hqq-w8g64": "? inconclusive",
        "hqq-w2g64": "✗ FAIL",
        "nf4-a": "– skipped",
        "nf4-b": "– skipped",
    }
    said = [line for line in done.output.splitlines() if line.startswith("- ")][-4:]
    assert said == [
        "- ✗ FAIL perplexity[m-hqq-w4g64-text]: ratio 1.2 is above 1.1",
        "- ✗ FAIL quantize[m-hqq-w2g64]: RuntimeError: out of memory",
        "- ? inconclusive decode[m-hqq-w8g64-b1]: speedup may be below 1.3",
        "- – skipped quantize[m-nf4-a], quantize[m-nf4-b]: bitsandbytes is not installed",
    ]


def test_a_case_that_broke_after_its_verdicts_is_no_pass(show, cells):
    cells.runs.save(
        cells.size("hqq-w4g64", 160.0),
        bitgate={"failed": {"quantize[m-hqq-w4g64]": "OSError: disk full"}, "unfinished": 0},
    )
    done = show("--format", "markdown")
    assert rows(done.output)["hqq-w4g64"][-1] == "✗ FAIL"
    assert "- ✗ FAIL quantize[m-hqq-w4g64]: OSError: disk full" in done.output


def test_a_run_that_says_only_what_failed_is_shown_too(show, cells):
    """Saved before runs named what has no record."""
    cells.runs.save(
        cells.size("hqq-w4g64", 160.0),
        bitgate={
            "failed": {
                "perplexity[m-hqq-w4g64-text]": "no text",
                "tests/test_it.py::test_plain": "assert 0",
            },
            "unfinished": 2,
        },
    )
    done = show("--format", "json")
    said = json.loads(done.output)
    known = {
        cell["recipe"]["name"]: [one["why"] for one in cell["absent"]]
        for part in said["models"]
        for cell in part["cells"]
    }
    assert known == {"hqq-w4g64": ["no text"], "tests/test_it.py::test_plain": ["assert 0"]}
    assert said["run"]["runs"][0]["unfinished"] == 2


def test_several_texts_phases_and_devices(show, cells):
    gpu = {"device": "cuda:1", "dtype": "float32", "threads": 1, "kernel": "gemlite"}
    compiled = {"device": "cpu", "dtype": "float32", "threads": 2, "kernel": "cpu-int4"}
    cells.runs.save(
        cells.size("hqq-w4g64", 160.0),
        cells.quality("hqq-w4g64", 0.2),
        cells.quality("hqq-w4g64", 0.3, "long"),
        cells.quality("hqq-w8g64", 0.01),
        cells.speed("hqq-w4g64", 1.5),
        cells.speed("hqq-w4g64", 2.5, "fast", execution={**compiled, "compiled": True}),
        cells.speed("hqq-w8g64", 3.0, execution=gpu),
    )
    done = show("--format", "markdown")
    titles = next(line for line in done.output.splitlines() if line.startswith("| recipe"))
    for title in ("ratio text", "ratio long", "decode × b1", "decode × fast"):
        assert f"| {title} |" in titles
    assert "decode × fast: over the base in float32, compiled, 2 threads on cpu" in done.output
    assert "decode × b1: over the base in float32, eager on cuda" in done.output
    assert "| gemlite on cuda |" in done.output


def test_models_have_tables_of_their_own(show, cells):
    other = cells.size("hqq-w4g64", 900.0)
    other[0].update(model="other", case="quantize[other-hqq-w4g64]")
    cells.runs.save(cells.size("hqq-w4g64", 160.0), other)
    parts = show("--format", "markdown").output.split("### ")
    assert [part.splitlines()[0] for part in parts[1:]] == ["m", "other"]


def test_a_run_keeps_what_it_skipped_and_what_broke(pytester, free_project):
    project = free_project(pytester.path)
    bench = project / "bench/test_quantize.py"
    text = bench.read_text().replace("nothing, benchmark", "cell, nothing, benchmark")
    bench.write_text(f"{text.rstrip()}\n    if cell.recipe.kernel == 'auto':\n        1 / 0\n")
    bench = project / "bench/test_perplexity.py"
    text = bench.read_text().replace("nothing, benchmark", "cell, nothing, benchmark")
    skips = "    if cell.recipe.kernel == 'auto':\n        pytest.skip('no such package')\n"
    bench.write_text(text.replace("    gate.decide", f"{skips}    gate.decide"))
    arguments = ("--benchmark-json=run.json", "-p", "no:cacheprovider")
    done = pytester.runpytest_subprocess("bench", *arguments)
    done.assert_outcomes(passed=2, failed=1, skipped=1)
    run = read_run(project / "run.json")
    assert [(one.case, one.why, one.failed) for one in run.absent] == [
        ("perplexity[llama-free-hqq-w4g64-words]", "no such package", False)
    ]
    (one,) = run.absent
    assert (one.model, one.recipe["name"], one.recipe["bits"]) == ("llama-free", "hqq-w4g64", 4)
    found = {cell.name: cell for cell in cells_of(Reference("it", [run]), lambda case: True)}
    assert found["hqq-w4g64-dequantize"].outcome == "pass"
    assert found["hqq-w4g64"].outcome == "fail"
    assert "division by zero" in str(found["hqq-w4g64"].broken)


# --- which run -------------------------------------------------------------------------------


def test_the_last_run_by_default_passed_or_not(show, cells):
    cells.runs.save(cells.size("hqq-w4g64", 160.0))
    cells.runs.save(
        cells.size("hqq-w8g64", 210.0), bitgate={"failed": {"x": "why"}, "unfinished": 0}
    )
    assert list(rows(show("--format", "markdown").output)) == ["hqq-w8g64"]
    assert list(rows(show("1", "--format", "markdown").output)) == ["hqq-w4g64"]
    assert list(rows(show("runs/0001_run.json", "--format", "markdown").output)) == ["hqq-w4g64"]


def test_of_several_runs_the_newest_record_of_each_case(show, cells):
    cells.runs.save(cells.size("hqq-w4g64", 160.0), cells.quality("hqq-w4g64", 0.2))
    cells.runs.save(cells.size("hqq-w4g64", 170.0))
    found = rows(show("latest", "--format", "markdown").output)["hqq-w4g64"]
    assert found[4] == "170.0"
    assert found[6].startswith("1.221")


def test_only_some_cases(show, methods):
    found = rows(show("-k", "*hqq-w4*", "--format", "markdown").output)
    assert list(found) == ["hqq-w4g64"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["9"], "no saved run of this number"),
        (["runs/none.json"], "runs/none.json cannot be read"),
        (["accepted"], "nothing was accepted yet"),
        (["-k", "*none*"], "no case is called so; there is quantize[m-hqq-w4g64], "),
    ],
)
def test_what_is_not_there_is_said_with_what_is(show, methods, arguments, says):
    done = show(*arguments)
    assert done.exit_code == 4
    assert says in done.output


def test_no_runs_at_all(show):
    done = show()
    assert (done.exit_code, "there are no saved runs in runs" in done.output) == (4, True)


def test_a_file_that_cannot_be_written(show, methods):
    for form in ("terminal", "json"):
        done = show("--format", form, "--output", "none/table.txt")
        assert done.exit_code == 4
        assert "cannot be written" in done.output


# --- what people and programs read -----------------------------------------------------------


def drawn(path, width):
    reference = Reference("it", [read_run(path)])
    parts = table.terminal(reference, table.tables(cells_of(reference, lambda case: True)), width)
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


@pytest.mark.parametrize("width", [200, 120, 90, 70])
def test_a_narrow_terminal_goes_without_some_columns_and_says_so(methods, width):
    text = drawn(methods, width)
    lines = [line for line in text.splitlines() if "-w" in line and "✓" in line]
    assert len(lines) == 3  # no figure is broken in two
    assert all(len(line.rstrip()) <= width for line in lines)
    for essential in ("150.0", "1.105 ± 0.111", "1.40 ± 0.16", "✓ pass"):
        assert any(essential in line for line in lines)
    assert ("no room for" in text) == (width < 130)


def test_json_has_every_metric_of_every_case(show, cells):
    broken = cells.quality("hqq-w2g64", 0.5)
    broken[0]["metrics"]["kl_divergence"]["value"] = float("nan")
    cells.runs.save(cells.size("hqq-w4g64", 160.0), cells.speed("hqq-w4g64", 1.5), broken)
    said = json.loads(show("--format", "json").output)
    (part,) = said["models"]
    first, second = part["cells"]
    assert (first["recipe"]["name"], first["bits_per_weight"]) == ("hqq-w4g64", 12.8)
    assert first["verdict"] == "pass"
    assert [case["case"] for case in first["cases"]] == [
        "quantize[m-hqq-w4g64]",
        "decode[m-hqq-w4g64-b1]",
    ]
    assert first["cases"][1]["metrics"]["speedup"]["value"] == 1.5
    assert first["cases"][1]["execution"]["threads"] == 1
    assert second["cases"][0]["metrics"]["kl_divergence"]["value"] is None
    assert second["bits_per_weight"] is None
