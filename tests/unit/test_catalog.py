"""The catalog: ids, what a matrix crosses, what overrides what, and what an error says."""

import subprocess
import sys
from pathlib import Path

import pytest

from bitgate.catalog import STATIC_FIELDS, CatalogError, Dataset, Recipe, load, nearest
from bitgate.quantize import recipe_types

SHA256 = "0" * 64
MATRIX = """
[decode.b1]
prompt = 8
output = 4

[prefill.p8]
prompt = 8

[[matrix]]
cadence = "commit"
models = ["llama-smollm2-135m"]
recipes = ["hqq-w4g64"]
quantize = true
perplexity = ["enwiki"]
decode = ["b1"]
prefill = ["p8"]
"""


@pytest.fixture
def read(tmp_path):
    """Reads a folder with these files (`models="..."` is models.toml), by default a good matrix."""

    def read(**files):
        for name, content in {"matrix": MATRIX, **files}.items():
            (tmp_path / f"{name}.toml").write_text(content)
        return load(tmp_path, recipe_types())

    return read


def entry(**changes):
    """A `[[matrix]]` table."""
    fields = {
        "cadence": "commit",
        "models": ["llama-smollm2-135m"],
        "recipes": ["hqq-w4g64"],
        "quantize": True,
    }
    lines = [f"{key} = {value!r}" for key, value in {**fields, **changes}.items()]
    return "\n".join(["[[matrix]]", *lines]).replace("True", "true").replace("False", "false")


# --- ids -----------------------------------------------------------------------------------


def test_ids(read):
    ids = {case.key for case in read().cases()}
    assert ids == {
        "quantize[llama-smollm2-135m-hqq-w4g64]",
        "perplexity[llama-smollm2-135m-hqq-w4g64-enwiki]",
        "decode[llama-smollm2-135m-hqq-w4g64-b1]",
        "prefill[llama-smollm2-135m-hqq-w4g64-p8]",
    }


def test_static_fields(read):
    fields = {case.kind: case.static_fields() for case in read().cases()}
    assert all(tuple(found) == STATIC_FIELDS for found in fields.values())
    common = {
        "model": "llama-smollm2-135m",
        "family": "llama",
        "task": "causal-lm",
        "method": "hqq",
        "recipe": "hqq-w4g64",
        "bits": 4,
        "group_size": 64,
    }
    none = dict.fromkeys(("dataset", "phase", "batch"))
    assert fields["quantize"] == common | none
    assert fields["perplexity"] == common | none | {"dataset": "enwiki"}
    assert fields["decode"] == common | none | {"phase": "decode", "batch": 1}
    assert fields["prefill"] == common | none | {"phase": "prefill", "batch": 1}


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "hqq-w4g64"),
        ({"axis": 0}, "hqq-w4g64-axis0"),
        ({"head": 8}, "hqq-w4g64-head8"),
        ({"solver": False}, "hqq-w4g64-rtn"),
        ({"kernel": "dequantize"}, "hqq-w4g64-dequantize"),
        ({"layers": ["*mlp*"], "label": "mlp"}, "hqq-w4g64-mlp"),
        (
            {
                "bits": 2,
                "group_size": 32,
                "axis": 0,
                "layers": ["*q_proj"],
                "label": "q",
                "head": 4,
                "solver": False,
                "kernel": "dequantize",
            },
            "hqq-w2g32-axis0-q-head4-rtn-dequantize",
        ),
    ],
)
def test_a_recipes_name_says_what_differs_from_the_default(keys, name):
    recipe = recipe_types()["hqq"].model_validate({"bits": 4, "group_size": 64, **keys})
    assert recipe.name == name


# --- crossing ------------------------------------------------------------------------------


def test_lists_of_a_recipe_are_crossed(read):
    recipes = """
[[recipe]]
method = "hqq"
bits = [8, 4]
group_size = [16, 24]
axis = [1, 0]
head = 4
label = "all"
"""
    names = {name for name in read(recipes=recipes).recipes if name.endswith("-all-head4")}
    assert names == {
        f"hqq-w{bits}g{group}{axis}-all-head4"
        for bits in (8, 4)
        for group in (16, 24)
        for axis in ("", "-axis0")
    }


def test_models_recipes_and_workloads_of_an_entry_are_crossed_in_order(read):
    phases = "[decode.a]\n[decode.b]\n"
    matrix = entry(
        models=["llama-smollm2-135m", "llama-3.2-1b-shape"],
        recipes=["hqq-w8g64", "hqq-w2g32"],
        quantize=False,
        decode=["b", "a"],
    )
    assert [case.id for case in read(matrix=phases + matrix).cases()] == [
        f"{model}-{recipe}-{phase}"
        for model in ("llama-smollm2-135m", "llama-3.2-1b-shape")
        for recipe in ("hqq-w8g64", "hqq-w2g32")
        for phase in ("b", "a")
    ]


def test_a_slower_cadence_includes_the_faster_ones(read):
    matrix = "\n".join(
        entry(cadence=cadence, recipes=[recipe])
        for cadence, recipe in (
            ("weekly", "hqq-w2g64"),
            ("commit", "hqq-w8g64"),
            ("nightly", "hqq-w4g64"),
        )
    )
    catalog = read(matrix=matrix)
    due = {
        cadence: {case.cell.recipe.bits for case in catalog.cases(cadence)}
        for cadence in ("commit", "nightly", "weekly")
    }
    assert due == {"commit": {8}, "nightly": {8, 4}, "weekly": {8, 4, 2}}


@pytest.mark.parametrize("order", [("weekly", "commit"), ("commit", "weekly")])
def test_the_fastest_cadence_wins(read, order):
    catalog = read(matrix="\n".join(entry(cadence=cadence) for cadence in order))
    (case,) = catalog.cases("weekly")
    assert case.cadence == "commit"
    assert catalog.cases("commit") == [case]


# --- overriding ----------------------------------------------------------------------------


def test_a_project_adds_to_the_defaults_and_overrides_them_by_name(read, tmp_path):
    catalog = read(
        models="""
[model.mine]
family = "llama"
source = { kind = "local", path = "weights/mine" }
tokenizer = "tokenizers/mine"

[model.llama-smollm2-135m]
family = "other"
source = { kind = "local", path = "/absolute" }
""",
        datasets=f"""
[dataset.enwiki]
format = "plain"
source = {{ kind = "file", url = "texts/a.txt", sha256 = "{SHA256}" }}

[dataset.remote]
format = "plain"
source = {{ kind = "file", url = "https://example.org/a.txt", sha256 = "{SHA256}" }}
""",
        recipes="""
[[recipe]]
method = "hqq"
bits = 4
group_size = 64
""",
    )
    assert catalog.models["mine"].source.path == tmp_path / "weights/mine"
    assert catalog.models["mine"].tokenizer == tmp_path / "tokenizers/mine"
    assert catalog.models["llama-smollm2-135m"].family == "other"
    assert catalog.models["llama-smollm2-135m"].source.path == Path("/absolute")
    assert "llama-3.2-1b-shape" in catalog.models, "a default that is not overridden stays"
    assert catalog.datasets["enwiki"].source.url == str(tmp_path / "texts/a.txt")
    assert catalog.datasets["remote"].source.url == "https://example.org/a.txt"


# --- errors --------------------------------------------------------------------------------

LOCAL = 'source = { kind = "local", path = "x" }'
PACKAGE = 'kind = "package", package = "p", version = "1", file = "f"'
HQQ = '[[recipe]]\nmethod = "hqq"\nbits = 4\ngroup_size = 64\n'
NEEDS = f'[dataset.d]\nformat = "plain"\n{LOCAL}\n'

ERRORS = {
    # models.toml
    "unknown-table": (
        {"models": '[modle.m]\nfamily = "x"'},
        ["models.toml: modle: unknown table; did you mean 'model'?"],
    ),
    "unknown-key": (
        {"models": f'[model.m]\nfamly = "x"\n{LOCAL}'},
        [
            "models.toml: [model.m]: famly: unknown key; did you mean 'family'?",
            "models.toml: [model.m]: family: this key is missing",
        ],
    ),
    "no-table": ({"models": "model = 3"}, ["models.toml: model: expected tables like [model."]),
    "no-entry": ({"models": "model.m = 3"}, ["models.toml: model.m: expected a table"]),
    "no-toml": ({"models": "[model"}, ["models.toml: not valid TOML:"]),
    "bad-name": (
        {"models": f'[model.M]\nfamily = "x"\n{LOCAL}'},
        ["models.toml: [model.M]: name: String should match pattern", "(got 'M')"],
    ),
    "unknown-kind-of-source": (
        {"models": '[model.m]\nfamily = "x"\nsource = { kind = "hubb" }'},
        ["models.toml: [model.m]: source: Input tag 'hubb'", "'hub', 'shapes', 'local', 'file'"],
    ),
    "bad-sha256": (
        {"models": f'[model.m]\nfamily = "x"\nsource = {{ {PACKAGE}, sha256 = "12" }}'},
        ["models.toml: [model.m]: source.sha256: String should match", "{64}", "(got '12')"],
    ),
    "missing-sha256": (
        {"models": f'[model.m]\nfamily = "x"\nsource = {{ {PACKAGE} }}'},
        ["models.toml: [model.m]: source.sha256: this key is missing"],
    ),
    "unknown-key-of-source": (
        {"models": f'[model.m]\nfamily = "x"\nsource = {{ {PACKAGE}, sha = "12" }}'},
        ["models.toml: [model.m]: source.sha: unknown key; did you mean 'sha256'?"],
    ),
    "unpinned-hub": (
        {
            "models": '[model.m]\nfamily = "x"\n'
            'source = { kind = "hub", repo = "a/b", revision = "main" }'
        },
        ["models.toml: [model.m]: source.revision: String should match", "{40}", "(got 'main')"],
    ),
    # datasets.toml
    "wrong-type": (
        {"datasets": NEEDS + 'tokens = "many"'},
        ["datasets.toml: [dataset.d]: tokens: Input should be a valid integer", "(got 'many')"],
    ),
    "stride": (
        {"datasets": NEEDS + "window = 8\nstride = 9"},
        ["datasets.toml: [dataset.d]: stride: 9 would skip text; give at most window, 8"],
    ),
    "tokens_limit": (
        {"datasets": NEEDS + "tokens = 8\ntokens_limit = 7"},
        ["datasets.toml: [dataset.d]: tokens_limit: 7 is too few; give at least tokens, 8"],
    ),
    # recipes.toml
    "recipe-is-no-list": (
        {"recipes": "[recipe]\nbits = 4"},
        ["recipes.toml: recipe: expected [[recipe]] tables"],
    ),
    "recipe-is-no-table": (
        {"recipes": "recipe = [3]"},
        ["recipes.toml: [[recipe]] number 1: expected a table"],
    ),
    "method": (
        {"recipes": HQQ + '[[recipe]]\nmethod = "hhq"'},
        ["recipes.toml: [[recipe]] number 2: method: nothing is called 'hhq'; did you mean 'hqq'?"],
    ),
    "no-method": (
        {"recipes": "[[recipe]]\nbits = 4"},
        ["recipes.toml: [[recipe]] number 1: method: this key is missing; there is "],
    ),
    "bits": (
        {"recipes": HQQ.replace("4\n", "[4, 5]\n", 1)},
        ["recipes.toml: [[recipe]] number 1: bits: Input should be 8, 4, 3, 2 or 1 (got 5)"],
    ),
    "empty-list": (
        {"recipes": HQQ.replace("64", "[]")},
        ["recipes.toml: [[recipe]] number 1: group_size: an empty list makes no recipe"],
    ),
    "unknown-key-of-recipe": (
        {"recipes": HQQ + "axes = 1"},
        ["recipes.toml: [[recipe]] number 1: axes: unknown key; did you mean 'axis'?"],
    ),
    "layers-without-label": (
        {"recipes": HQQ + 'layers = ["*mlp*"]'},
        ["recipes.toml: [[recipe]] number 1: `layers` needs a `label`"],
    ),
    "label": (
        {"recipes": HQQ + 'label = "a[b]"'},
        ["recipes.toml: [[recipe]] number 1: label: String should match", "(got 'a[b]')"],
    ),
    "kernel": (
        {"recipes": HQQ + 'kernel = "cpu_int4"'},
        [
            "recipes.toml: [[recipe]] number 1: kernel: no kernel is called 'cpu_int4'; ",
            "; did you mean 'cpu-int4'?",
        ],
    ),
    "two-of-a-name": (
        {"recipes": "".join(HQQ + f'layers = ["*{x}"]\nlabel = "a"\n' for x in "qk")},
        ["recipes.toml: [[recipe]] number 2: two recipes of this file are called hqq-w4g64-a"],
    ),
    # matrix.toml
    "no-matrix": (
        {"matrix": "[decode.b1]"},
        ["matrix.toml: matrix: expected at least one [[matrix]] table"],
    ),
    "unknown-model": (
        {"matrix": entry(models=["llama-smollm-135m"])},
        [
            "matrix.toml: [[matrix]] number 1: models: nothing is called 'llama-smollm-135m'; ",
            "; did you mean 'llama-smollm2-135m'?",
        ],
    ),
    "unknown-recipe": (
        {"matrix": entry() + "\n" + entry(recipes=["hqq-w5g64"])},
        ["matrix.toml: [[matrix]] number 2: recipes: nothing is called 'hqq-w5g64'; did you mean"],
    ),
    "unknown-dataset": (
        {"matrix": entry(perplexity=["zzz"])},
        ["matrix.toml: [[matrix]] number 1: perplexity: nothing is called 'zzz'; there is enwiki"],
    ),
    "unknown-phase": (
        {"matrix": "[prefill.b1]\n" + entry(decode=["b1"])},
        ["matrix.toml: [[matrix]] number 1: decode: nothing is called 'b1'; there is none"],
    ),
    "found-only-weekly": (
        {"matrix": entry(cadence="weekly", models=["zzz"])},
        ["matrix.toml: [[matrix]] number 1: models: nothing is called 'zzz'"],
    ),
    "cadence": (
        {"matrix": entry(cadence="daily")},
        [
            "matrix.toml: [[matrix]] number 1: cadence: Input should be 'commit', 'nightly' or ",
            " or 'weekly' (got 'daily')",
        ],
    ),
    "matrix-key": (
        {"matrix": entry(perplexities=["enwiki"])},
        ["matrix.toml: [[matrix]] number 1: perplexities: unknown key; did you mean 'perplexity'?"],
    ),
    "no-recipes": (
        {"matrix": entry(recipes=[])},
        ["matrix.toml: [[matrix]] number 1: recipes: List should have at least 1 item"],
    ),
    "no-workload": (
        {"matrix": entry(quantize=False)},
        ["matrix.toml: [[matrix]] number 1: no workload: give at least one of quantize, perpl"],
    ),
    "compiled-prefill": (
        {"matrix": "[prefill.p]\ncompiled = true\n" + MATRIX},
        ["matrix.toml: [prefill.p]: `compiled` goes with decode only"],
    ),
    "nothing-to-decode": (
        {"matrix": "[decode.b]\noutput = 0\n" + MATRIX},
        ["matrix.toml: [decode.b]: `output` must be at least 1 to decode"],
    ),
    "one-id-for-two": (
        {
            "recipes": HQQ + 'label = "b1"',
            "matrix": "[decode.b1-x]\n[decode.x]\n"
            + entry(recipes=["hqq-w4g64", "hqq-w4g64-b1"], decode=["x", "b1-x"]),
        },
        [
            "matrix.toml: [[matrix]] number 1: decode[llama-smollm2-135m-hqq-w4g64-b1-x] is the ",
            " is the id of two cases: of recipe hqq-w4g64 and of hqq-w4g64-b1; rename a workload",
        ],
    ),
    "fewer-windows-than-an-interval-takes": (
        {"datasets": NEEDS + "window = 64\ntokens = 63", "matrix": entry(perplexity=["d"])},
        [
            "matrix.toml: [[matrix]] number 1: perplexity: dataset d: tokens: 63 are scored in ",
            "fewer than the 3 windows of 64 that an interval takes; give at least 64",
        ],
    ),
    "a-limit-of-fewer-windows": (
        {
            "datasets": NEEDS + "window = 64\ntokens = 9\ntokens_limit = 96\nstride = 48",
            "matrix": entry(perplexity=["d"]),
        },
        ["perplexity: dataset d: tokens_limit: 96 are scored in ", "give at least 97"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_names_file_entry_key_and_remedy(read, name):
    files, parts = ERRORS[name]
    with pytest.raises(CatalogError) as caught:
        read(**files)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "Value error" not in message
    assert len(message) < 600


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("stride", [None, 5, 7])
@pytest.mark.parametrize("key", ["tokens", "tokens_limit"])
def test_the_least_tokens_are_the_least_that_give_the_windows(key, stride, bos):
    """Beside what is cut: of a text in which every window scores as little as it may."""
    from bitgate.sources.windows import cut

    texts = [list(range(1000))] if stride else [list(range(8))] * 100
    fields = {"name": "d", "source": {"kind": "local", "path": "x"}, "format": "plain"}
    fields |= {"window": 8, "stride": stride, "bos": bos, "tokens": 1}

    def drawn(number):
        dataset = Dataset.model_validate({**fields, key: number})
        return dataset, len(cut(dataset, texts, 1 if bos else None))

    (_, least) = drawn(1)[0].too_few_for(3)
    assert drawn(least)[0].too_few_for(3) is None
    assert drawn(least)[1] == 3
    assert drawn(least - 1)[0].too_few_for(3) == (key, least)
    assert drawn(least - 1)[1] < 3


# --- texts to calibrate with -----------------------------------------------------------------


class TaughtRecipe(Recipe):
    """Of a method that looks at a text first."""

    calibration: Dataset
    calibrated_by = ("calibration",)


TAUGHT = '[[recipe]]\nmethod = "taught"\nbits = 4\ncalibration = "lessons"\n'
LESSONS = """
[dataset.exam]
format = "plain"
source = { kind = "local", path = "text" }

[dataset.lessons]
format = "plain"
source = { kind = "local", path = "text" }
"""


def taught(folder, datasets=LESSONS, recipes=TAUGHT):
    matrix = entry(recipes=["taught-w4"], perplexity=["exam"])
    for name, content in {"datasets": datasets, "recipes": recipes, "matrix": matrix}.items():
        (folder / f"{name}.toml").write_text(content)
    return load(folder, {**recipe_types(), "taught": TaughtRecipe})


def test_a_recipe_names_the_text_that_it_is_calibrated_with(tmp_path):
    catalog = taught(tmp_path, LESSONS + 'avoid = ["exam"]')
    (text,) = catalog.recipes["taught-w4"].calibration_texts()
    assert text == catalog.datasets["lessons"]
    assert [avoided.name for avoided in text.avoid] == ["exam"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "recipe taught-w4 is calibrated with lessons, which may draw what exam scores"),
        ({}, 'add avoid = ["exam"] to dataset lessons, or calibrate with another'),
        (
            {"recipes": TAUGHT.replace("lessons", "exam")},
            "calibrated with exam, which may draw what exam scores: calibrate with another",
        ),
        (
            {"recipes": TAUGHT.replace("lessons", "lesson")},
            "[[recipe]] number 1: calibration: nothing is called 'lesson'; did you mean 'lessons'?",
        ),
        ({"datasets": LESSONS + 'avoid = ["exams"]'}, "avoid: nothing else is called 'exams'; did"),
        ({"datasets": LESSONS + 'avoid = ["lessons"]'}, "avoid: nothing else is called 'lessons'"),
        ({"datasets": LESSONS + 'avoid = ["enwiki"]'}, "lessons, which may draw what exam scores"),
        ({"datasets": LESSONS + 'avoid = "exam"'}, "avoid: expected a list of datasets' names"),
    ],
)
def test_a_text_to_calibrate_with_is_never_scored(tmp_path, files, message):
    with pytest.raises(CatalogError) as caught:
        taught(tmp_path, **files)
    assert message in str(caught.value)


def test_a_folder_without_a_matrix_names_the_option(tmp_path):
    with pytest.raises(CatalogError, match=r"matrix\.toml is missing.*--catalog"):
        load(tmp_path, recipe_types())


def test_a_long_list_of_names_is_cut():
    assert nearest("zzz", map(str, range(30))).endswith(" and 18 more")


# --- imports -------------------------------------------------------------------------------


def test_reading_a_catalog_imports_nothing_heavy():
    code = (
        "import sys, bitgate.catalog, bitgate.quantize\n"
        "bitgate.quantize.recipe_types()\n"
        "print(*{'torch', 'transformers', 'hqq', 'numpy', 'scipy', 'pytest'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
