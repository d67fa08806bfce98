"""`thresholds.toml`: what it may say, what is refused and with which words, and which rule wins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgate.catalog import (
    STATIC_FIELDS,
    Case,
    Cell,
    Dataset,
    Execution,
    LocalSource,
    Model,
    PhaseWorkload,
    QuantizeWorkload,
    Recipe,
    ShapesSource,
    TextWorkload,
    Workload,
)
from bitgate.gates.rules import Row, explain, matching, resolve, unmatched
from bitgate.gates.thresholds import (
    FIELDS,
    Bound,
    Gate,
    Match,
    Thresholds,
    ThresholdsError,
    check,
    load,
)
from bitgate.gates.tolerances import DEFAULTS, Tolerance
from bitgate.metric import SPECS

TEXT = Dataset(name="wiki", source=LocalSource(kind="local", path=Path("wiki")), format="plain")
DECODE = PhaseWorkload(kind="decode", name="b1")
CPU = Execution(device="cpu", dtype="bfloat16", threads=1, kernel="cpu-int4")
HQQ4 = Recipe(method="hqq", bits=4, group_size=64)


def make_case(
    workload: Workload = DECODE, recipe: Recipe = HQQ4, model: str = "llama-tiny"
) -> Case:
    source = ShapesSource(kind="shapes")
    return Case(
        Cell(Model(name=model, family="llama", source=source, config={}), recipe),
        workload,
        "commit",
    )


WORKLOADS: tuple[Workload, ...] = (QuantizeWorkload(), TextWorkload(dataset=TEXT), DECODE)
CASES = [
    make_case(workload, recipe)
    for recipe in (HQQ4, Recipe(method="hqq", bits=2, group_size=64))
    for workload in WORKLOADS
]
DEVICES, KERNELS = ("cpu", "cuda"), ("cpu-int4", "dequantize")


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> Thresholds:
        path = tmp_path / "thresholds.toml"
        path.write_text(text, "utf-8")
        return load(path, "thresholds.toml")

    return read


def one_gate(match: str = "", require: str = "perplexity = { max = 14 }") -> str:
    return f'[[gate]]\nname = "g"\nmatch = {{ {match} }}\nrequire = {{ {require} }}\n'


# --- reading -------------------------------------------------------------------------------


def test_the_example_of_the_design(read) -> None:
    thresholds = read("""
        [[gate]]
        name = "hqq w4"
        match = { method = "hqq", bits = 4 }
        require.perplexity_ratio = { max = 1.28 }     # 1.250 measured
        require.size_mib = { within = 0.01 }

        [[gate]]
        name = "2 bits collapse without calibration"
        match = { method = "hqq", bits = 2 }
        require.top1_agreement = { min = 0.5, expect = "fail", reason = "known; see docs" }
    """)
    check(thresholds, CASES, DEVICES, KERNELS)
    first, second = thresholds.gates
    assert first.match == Match(method=("hqq",), bits=(4,))
    assert first.require["perplexity_ratio"].max == 1.28
    assert first.require["size_mib"].within == 0.01
    assert str(second.require["top1_agreement"]) == "min 0.5, expected to fail: known; see docs"
    assert thresholds.file == "thresholds.toml"


def test_an_empty_file_has_no_gates(read) -> None:
    assert read("").gates == ()


def test_fields_are_those_of_catalog_and_execution() -> None:
    assert set(Match.model_fields) == set(FIELDS)
    assert set(make_case().static_fields()) == set(STATIC_FIELDS)
    assert {**make_case().static_fields(), **CPU.fields()}.keys() == set(FIELDS)


def test_bounds_are_shown_as_written() -> None:
    assert str(Bound(min=14, max=1e-9 + 20, within=0)) == "min 14, max 20.000000001, within 0"


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ThresholdsError, match=r"no\.toml is missing: .* --thresholds"):
        load(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[gate]\n", "thresholds.toml: not valid TOML: "),
        ("[[gates]]\n", "thresholds.toml: gates: unknown table; did you mean 'gate'?"),
        ("gate = 3\n", "thresholds.toml: gate: expected [[gate]] tables"),
        ("[agains]\n", "thresholds.toml: agains: unknown table; did you mean 'against'?"),
        ("against = 1\n", "thresholds.toml: [against]: expected a table of metrics and numbers"),
        (
            "[against]\nspedup = 0.1\n",
            "thresholds.toml: [against]: spedup: nothing is compared that is called so; did you",
        ),
        (
            "[against]\nlatency_ms = 0.1\n",
            "thresholds.toml: [against]: latency_ms: nothing is compared that is called so",
        ),
        *(
            (
                f"[against]\nspeedup = {value}\n",
                "thresholds.toml: [against]: speedup: expected a number, 0 or more, got ",
            )
            for value in ("-0.1", "true", '"2 %"', "nan", "inf")
        ),
        ("gate = [3]\n", "thresholds.toml: [[gate]] number 1: entry: Input should be a valid"),
        (
            "[[gate]]\nrequire.perplexity = { max = 1 }\n",
            "thresholds.toml: [[gate]] number 1: name: this key is missing",
        ),
        (
            '[[gate]]\nname = ""\nrequire.perplexity = { max = 1 }\n',
            'thresholds.toml: [[gate]] "": name: String should have at least 1 character',
        ),
        (
            '[[gate]]\nname = "g"\n',
            'thresholds.toml: [[gate]] "g": require: this key is missing',
        ),
        (one_gate(require=""), '"g": require: Dictionary should have at least 1 item'),
        (
            one_gate() + one_gate(),
            'thresholds.toml: [[gate]] "g": name: gates number 1 and 2 share it; rename one',
        ),
        (
            one_gate() + "requires.x = 1\n",
            "\"g\": requires: unknown key; did you mean 'require'?",
        ),
        (
            one_gate(match='modle = "x"'),
            "thresholds.toml: [[gate]] \"g\": match.modle: unknown field; did you mean 'model'?",
        ),
        (
            one_gate(require="perplexity_ration = { max = 1 }"),
            "\"g\": require.perplexity_ration: unknown metric; did you mean 'perplexity_ratio'?",
        ),
        (
            one_gate(require="perplexity = { maxx = 1 }"),
            "\"g\": require.perplexity.maxx: unknown key; did you mean 'max'?",
        ),
        (one_gate(match='bits = "4"'), '"g": match.bits: takes a whole number, or a list of them'),
        (one_gate(match="bits = true"), '"g": match.bits: takes a whole number, or a list of them'),
        (one_gate(match="bits = [4, 3.5]"), '"g": match.bits: takes a whole number'),
        (one_gate(match="bits = []"), '"g": match.bits: takes a whole number'),
        (one_gate(match="model = 4"), '"g": match.model: takes a name or glob in quotes, or a'),
        (one_gate(match='compiled = "no"'), '"g": match.compiled: Input should be a valid boolean'),
        ('[[gate]]\nname = "g"\nmatch = 3\nrequire.perplexity.max = 1\n', '"g": match: Input'),
        (one_gate(require="perplexity = 14"), '"g": require.perplexity: Input should be a valid'),
        (
            one_gate(require='perplexity = { max = "14" }'),
            "\"g\": require.perplexity.max: Input should be a valid number (got '14')",
        ),
        (one_gate(require="perplexity = { max = true }"), "max: Input should be a valid number"),
        (one_gate(require="perplexity = { max = nan }"), "max: Input should be a finite number"),
        (one_gate(require="perplexity = { max = inf }"), "max: Input should be a finite number"),
        (
            one_gate(require="size_mib = { within = -0.1 }"),
            '"g": require.size_mib.within: Input should be greater than or equal to 0 (got -0.1)',
        ),
        (
            one_gate(require='perplexity = { reason = "why not" }'),
            '"g": require.perplexity: give at least one of min, max and within',
        ),
        (
            one_gate(require="perplexity = { min = 2, max = 1 }"),
            '"g": require.perplexity: min is above max, so nothing can pass',
        ),
        (
            one_gate(require='perplexity = { max = 1, expect = "fail" }'),
            '"g": require.perplexity: expect = "fail" needs a reason',
        ),
        (
            one_gate(require='perplexity = { max = 1, expect = "fail", reason = " " }'),
            '"g": require.perplexity: expect = "fail" needs a reason',
        ),
        (
            one_gate(require='perplexity = { max = 1, expect = "pass" }'),
            "\"g\": require.perplexity.expect: Input should be 'fail' (got 'pass')",
        ),
    ],
)
def test_what_is_refused(read, text: str, message: str) -> None:
    with pytest.raises(ThresholdsError) as error:
        read(text)
    assert message in str(error.value)


# --- against the matrix --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "require", "message"),
    [
        (
            'model = "lama-tiny"',
            "perplexity = { max = 1 }",
            (
                'thresholds.toml: [[gate]] "g": match.model: '
                "no model matches 'lama-tiny'; did you mean 'llama-tiny'?"
            ),
        ),
        (
            'model = "opt-*"',
            "perplexity = { max = 1 }",
            "match.model: no model matches 'opt-*'; there is llama-tiny",
        ),
        ("bits = 3", "perplexity = { max = 1 }", "match.bits: no bits matches 3; there is 2, 4"),
        ("bits = [4, 3]", "perplexity = { max = 1 }", "match.bits: no bits matches 3"),
        (
            'device = "cdua"',
            "perplexity = { max = 1 }",
            "match.device: no device matches 'cdua'; did you mean 'cuda'?",
        ),
        (
            'kernel = "gemlite"',
            "perplexity = { max = 1 }",
            "match.kernel: no kernel matches 'gemlite'; there is cpu-int4, dequantize",
        ),
        (
            "compiled = true",
            "speedup = { min = 1 }",
            "match.compiled: no compiled matches True; there is False",
        ),
        (
            'dataset = "wiki"',
            "size_mib = { max = 1 }",
            (
                "match.dataset: no dataset matches 'wiki' among the cases that measure size_mib; "
                "there is none"
            ),
        ),
        (
            'phase = "prefill"',
            "speedup = { min = 1 }",
            "match.phase: no phase matches 'prefill'; there is decode",
        ),
        (
            'recipe = "hqq-w4*", bits = [2]',
            "speedup = { min = 1 }",
            (
                "match.bits: no bits matches 2 among the cases that measure speedup, "
                "recipe 'hqq-w4*'; there is 4"
            ),
        ),
    ],
)
def test_a_gate_that_can_match_nothing(read, match: str, require: str, message: str) -> None:
    with pytest.raises(ThresholdsError) as error:
        check(read(one_gate(match, require)), CASES, DEVICES, KERNELS)
    assert message in str(error.value)


def test_a_metric_that_nothing_measures(read) -> None:
    thresholds = read(one_gate(require="speedup = { min = 1 }"))
    cases = [case for case in CASES if case.kind != "decode"]
    with pytest.raises(ThresholdsError, match="no case of the matrix measures it; "):
        check(thresholds, cases, DEVICES, KERNELS)


def test_a_forced_kernel_is_the_only_one_that_can_match(read) -> None:
    forced = [make_case(recipe=Recipe(method="hqq", bits=4, kernel="dequantize"))]
    check(read(one_gate('kernel = "deq*"', "speedup = { min = 1 }")), forced, DEVICES, KERNELS)
    thresholds = read(one_gate('kernel = "cpu-*"', "speedup = { min = 1 }"))
    with pytest.raises(ThresholdsError, match=r"match\.kernel: .* there is dequantize"):
        check(thresholds, forced, DEVICES, KERNELS)


def test_a_name_that_only_another_cadence_has_is_no_error(read) -> None:
    compiled = PhaseWorkload(kind="decode", name="c", compiled=True)
    nightly = Case(make_case().cell, compiled, "nightly")
    thresholds = read(one_gate("compiled = true", "speedup = { min = 1 }"))
    check(thresholds, [*CASES, nightly], DEVICES, KERNELS)


# --- which rule wins -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ({}, True),
        ({"model": "llama-*", "bits": 4, "device": "cpu", "compiled": False}, True),
        ({"model": "LLAMA-*"}, False),  # case matters, on every platform
        ({"bits": [2, 4]}, True),
        ({"bits": 2}, False),
        ({"model": ["opt-*", "*tiny"]}, True),
        ({"dataset": "*"}, False),  # decoding has none
        ({"phase": "decode", "batch": 1, "group_size": 64}, True),
        ({"kernel": "dequantize"}, False),
        ({"device": "cuda*"}, False),
        ({"compiled": True}, False),
    ],
)
def test_which_cases_a_gate_is_for(match: dict[str, object], matches: bool) -> None:
    gate = Gate.model_validate({"name": "g", "match": match, "require": {"speedup": {"min": 1}}})
    assert bool(matching(Thresholds("t", (gate,)), make_case(), CPU)) is matches


def test_a_later_rule_wins_metric_by_metric(read) -> None:
    thresholds = read("""
        [[gate]]
        name = "all"
        require.speedup = { min = 1 }
        require.latency_ms = { max = 50 }
        require.perplexity = { max = 14 }             # not measured when decoding

        [[gate]]
        name = "only 2 bits"
        match = { bits = 2 }
        require.speedup = { min = 3 }

        [[gate]]
        name = "4 bits"
        match = { bits = 4 }
        require.speedup = { min = 2, max = 9 }
    """)
    rules = matching(thresholds, make_case(), CPU)
    winners = resolve(rules)
    assert {metric: rule.gate for metric, rule in winners.items()} == {
        "speedup": "4 bits",
        "latency_ms": "all",
    }
    assert winners["speedup"].source == '[thresholds.toml rule "4 bits"]'
    assert explain(rules) == [
        Row("speedup", "all", "min 1", wins=False),
        Row("speedup", "4 bits", "min 2, max 9", wins=True),
        Row("latency_ms", "all", "max 50", wins=True),
    ]
    assert unmatched(thresholds, {rule.gate for rule in rules}) == ["only 2 bits"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 2, 4]), st.sets(st.sampled_from(["speedup", "latency_ms"]))
        ),
        max_size=8,
    )
)
def test_the_winner_is_the_last_that_matches(gates: list[tuple[int | None, set[str]]]) -> None:
    thresholds = Thresholds(
        "t",
        tuple(
            Gate.model_validate(
                {
                    "name": str(i),
                    "match": {} if bits is None else {"bits": bits},
                    "require": {metric: {"min": 1} for metric in metrics},
                }
            )
            for i, (bits, metrics) in enumerate(gates)
            if metrics
        ),
    )
    winners = resolve(matching(thresholds, make_case(), CPU))
    for metric in ("speedup", "latency_ms"):
        meant = [i for i, (bits, of) in enumerate(gates) if bits in (None, 4) and metric in of]
        assert (winners[metric].gate if metric in winners else None) == (
            str(meant[-1]) if meant else None
        )


def test_reading_thresholds_imports_nothing_heavy() -> None:
    code = (
        "import sys, bitgate.gates.decide, bitgate.gates.thresholds; "
        "print(*{'numpy', 'scipy', 'torch', 'transformers', 'pytest'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_tolerances_have_defaults_that_the_file_changes(tmp_path):
    path = tmp_path / "thresholds.toml"
    path.write_text("")
    assert load(path).against == DEFAULTS
    path.write_text("[against]\nspeedup = 0\nkl_divergence = 0.01\n")
    changed = load(path).against
    assert changed["speedup"] == Tolerance("ratio", 0)
    assert changed["kl_divergence"] == Tolerance("difference", 0.01)
    assert changed["perplexity"] == DEFAULTS["perplexity"]
    assert DEFAULTS.keys() <= SPECS.keys()
