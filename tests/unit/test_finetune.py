"""Fine-tuning on a tiny Llama: an adapter beside peft's own, merged, trained once, its gains."""

import json
import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from bitgate.catalog import CatalogError, Dataset, FinetuneWorkload, load
from bitgate.measure import trained_adapter as training_once
from bitgate.measure.adapters import PREFIX, WEIGHTS, beside, merged, read_adapter
from bitgate.measure.gains import STATES, STEP, WINDOW, KeptGains, PeakWarning
from bitgate.measure.measurement import MeasureError
from bitgate.measure.trained_adapter import TrainingError, trained_adapter
from bitgate.measure.training import DivergedError, Settings, train
from bitgate.measure.tuned import Tuned, window_nll
from bitgate.quantize import method, recipe_types
from bitgate.sources import SourceError

LACKING = [name for name in ("peft", "bitsandbytes") if find_spec(name) is None]
needs_them = pytest.mark.skipif(bool(LACKING), reason="pip install 'bitgate[finetune]'")
SETTINGS = Settings(steps=8, batch=2, learning_rate=1e-2, rank=4, seed=0)
NF4 = {"method": "bitsandbytes", "type": "nf4"}
TOKENS = torch.arange(24).reshape(2, 12)


def dataset(name, **changes):
    fields = {
        "name": name,
        "source": {"kind": "local", "path": f"/{name}"},
        "format": "plain",
        "tokens": 600,
        "window": 32,
    }
    return Dataset.model_validate({**fields, **changes})


def workload(**changes):
    fields = {
        "kind": "finetune",
        "name": "w",
        "dataset": dataset("exam"),
        "training": dataset("lessons"),
        **SETTINGS.model_dump(exclude={"seed"}),
    }
    return FinetuneWorkload.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def nf4(llama, loaded):
    """The base, and what it is in NF4; made anew each time, as training changes it."""
    how = method("bitsandbytes")
    base = llama()
    return lambda: (
        base,
        how.quantize(loaded(base), how.RECIPE.model_validate({"type": "nf4"}), torch.float32),
    )


@pytest.fixture(scope="module")
def text(random_text):
    """Windows of a text with a pattern, so that there is something to learn."""
    words = random_text(vocabulary=8, documents=(700,), window=32)
    words.tokens[:, ::2] = 7
    return words


@pytest.fixture(scope="module")
def trained(nf4, text, tmp_path_factory):
    """The base, its NF4 untouched, peft's module after training, and the folder of its adapter."""
    if LACKING:
        pytest.skip("pip install 'bitgate[finetune]'")
    base, quantized = nf4()
    module = nf4()[1].module
    done = train(module, quantized.layers, text.tokens, SETTINGS)
    folder = tmp_path_factory.mktemp("adapter")
    done.module.save_pretrained(folder)
    return base, quantized, done, folder


# --- training ------------------------------------------------------------------------------


def test_training_learns_and_is_repeatable(nf4, trained, text):
    _, quantized, done, _ = trained
    assert len(done.losses) == len(done.seconds) == SETTINGS.steps
    assert np.mean(done.losses[-3:]) < np.mean(done.losses[:3]) - 0.1
    again = train(nf4()[1].module, quantized.layers, text.tokens, SETTINGS)
    assert again.losses == done.losses
    other = SETTINGS.model_copy(update={"seed": 1})
    assert train(nf4()[1].module, quantized.layers, text.tokens, other).losses != done.losses


def test_the_first_loss_is_that_of_the_quantized_model(trained, text, served):
    """An adapter begins at zero; the loss of a step is the mean over its tokens."""
    _, quantized, done, _ = trained
    nll = window_nll(served(quantized.module), text, 0, 2)
    # every token but a window's first is scored there, whatever the window
    logits = quantized.module(text.tokens[:2]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), text.tokens[:2, 1:].flatten()
    )
    assert done.losses[0] == pytest.approx(float(expected), rel=1e-5)
    assert sum(nll) / 62 == pytest.approx(float(expected), rel=1e-5)


def test_quantized_weights_stay_as_they_are(trained):
    _, quantized, done, _ = trained
    inside = dict(done.module.get_base_model().named_modules())
    for name, weight in quantized.weights():
        layer = inside[name].base_layer
        assert torch.equal(quantized.codec.dequantize(layer), weight), name


@needs_them
def test_a_loss_that_is_no_number_ends_it(nf4, text):
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(
        DivergedError, match=r"the loss of step \d+ is .*: lower `learning_rate`, n"
    ):
        train(nf4()[1].module, nf4()[1].layers, text.tokens, wild)


# --- the adapter, beside and merged ----------------------------------------------------------


def logits_of(module):
    with torch.inference_mode():
        return module(TOKENS).logits


def test_beside_the_layers_it_does_what_peft_does(trained):
    _, quantized, done, folder = trained
    before = logits_of(quantized.module)
    adapter = read_adapter(folder, "cpu", torch.float32)
    assert adapter.keys() == set(quantized.layers)
    own, theirs = logits_of(beside(quantized.module, adapter)), logits_of(done.module)
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)
    assert float((own - before).abs().max()) > 0.05, "it does something"
    assert torch.equal(logits_of(quantized.module), before), "the quantized model is as it was"


def test_merged_into_dequantized_weights_it_is_the_same_model(trained):
    base, quantized, done, folder = trained
    before = logits_of(base)
    adapter = read_adapter(folder, "cpu", torch.float32)
    plain = merged(base, quantized.weights(), adapter)
    theirs = logits_of(done.module)
    torch.testing.assert_close(logits_of(plain), theirs, rtol=1e-4, atol=1e-4)
    # into the base's own weights: another model, by what NF4 rounded away
    layers = {name: base.get_submodule(name).weight for name in quantized.layers}
    other = merged(base, layers.items(), adapter)
    assert float((logits_of(other) - theirs).abs().max()) > 0.05
    assert torch.equal(logits_of(base), before), "the base is as it was"
    head = plain.get_submodule("lm_head").weight
    assert head.data_ptr() == base.get_submodule("lm_head").weight.data_ptr(), "the rest is shared"


def test_it_merges_as_peft_merges(trained, llama):
    """Into a plain model that has the dequantized weights."""
    from peft import PeftModel

    base, quantized, _, folder = trained
    plain = llama()
    for name, weight in quantized.weights():
        plain.get_submodule(name).weight.copy_(weight)
    theirs = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    own = merged(base, quantized.weights(), read_adapter(folder, "cpu", torch.float32))
    for name in quantized.layers:
        expected = theirs.get_submodule(name).weight
        torch.testing.assert_close(own.get_submodule(name).weight, expected, rtol=1e-6, atol=1e-6)


def test_an_adapter_of_other_layers_is_refused(trained):
    base, quantized, _, folder = trained
    adapter = dict(read_adapter(folder, "cpu", torch.float32))
    first = quantized.layers[0]
    some = {name: update for name, update in adapter.items() if name != first}
    with pytest.raises(MeasureError, match=f"nothing for the quantized layer {first}"):
        merged(base, quantized.weights(), some)
    fewer = [(name, weight) for name, weight in quantized.weights() if name != first]
    with pytest.raises(MeasureError, match=f"also of layers not quantized: {first}"):
        merged(base, fewer, adapter)


def test_it_is_beside_any_kernels_layers(trained, hqq, execution):
    """The packed int4 kernel knows nothing of peft."""
    base, _, _, folder = trained
    served = hqq(base).serve(execution("cpu-int4"))
    adapter = read_adapter(folder, "cpu", torch.float32)
    adapted = beside(served.module, adapter)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    name = "model.layers.0.mlp.up_proj"
    own = adapted.get_submodule(name)(x) - served.module.get_submodule(name)(x)
    torch.testing.assert_close(own, x @ adapter[name].weight().T, rtol=1e-3, atol=1e-4)


def test_the_scale_is_alpha_over_rank(trained):
    folder = trained[3]
    update = read_adapter(folder, "cpu", torch.float32)["model.layers.1.self_attn.q_proj"]
    key = f"{PREFIX}model.layers.1.self_attn.q_proj"
    tensors = load_file(folder / WEIGHTS)
    a, b = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
    assert a.shape == (4, 128)
    torch.testing.assert_close(update.weight(), 2 * b @ a)


# --- trained once, by another process --------------------------------------------------------


@pytest.fixture
def once(monkeypatch, tmp_path, nf4, text, execution, loaded):
    """Trains in a process that `code` takes the place of."""
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))

    def make(code=None, text=text, recipe=NF4, model=(), run=(), **changes):
        if code is not None:
            script = tmp_path / "stand_in.py"
            script.write_text(code)
            monkeypatch.setattr(training_once, "COMMAND", (sys.executable, "-S", str(script)))
        known = replace(loaded(None), **dict(model))
        how = method(recipe["method"]).RECIPE.model_validate(recipe)
        of, running = workload(**changes), execution(**dict(run))
        return trained_adapter(lambda: nf4()[1], known, how, text, of, running)

    return make


STAND_IN = """
import json, pathlib, sys
job, folder = json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2])
for step in range(job["settings"]["steps"]):
    print("step", step + 1, flush=True)
with open({log!r}, "a") as log:
    log.write(f"{{job['settings']['learning_rate']}} ")
(folder / "training.json").write_text('{{"losses": [1.0]}}')
"""


@needs_them
def test_it_is_trained_once_for_a_key(once, tmp_path):
    log = tmp_path / "log"
    code = STAND_IN.format(log=str(log))
    first = once(code)
    assert first.record == {"losses": [1.0]}
    assert once(code).folder == first.folder
    assert log.read_text() == "0.01 "
    assert once(code, learning_rate=0.02).folder != first.folder
    assert once(code, name="renamed").folder == first.folder, "no name is part of the key"
    assert log.read_text() == "0.01 0.02 "


@needs_them
def test_whatever_changes_the_adapter_changes_its_key(once, random_text, tmp_path):
    code = STAND_IN.format(log=str(tmp_path / "log"))
    other = random_text(vocabulary=8, documents=(700,), window=32, seed=1)
    ways = [
        {},
        {"model": {"fingerprint": "other weights"}},
        {"recipe": {**NF4, "type": "fp4"}},
        {"text": other},
        {"run": {"threads": 2}},
        {"rank": 2},
    ]
    assert len({once(code, **way).folder for way in ways}) == len(ways)


@needs_them
def test_an_edited_calibration_text_gives_another_adapter(once, by_word, tmp_path):
    """The recipe names the file only."""
    code, file = STAND_IN.format(log=str(tmp_path / "log")), tmp_path / "words.txt"
    words = dataset("words", source={"kind": "local", "path": str(file)}, tokens=40, window=16)
    recipe = {
        "method": "linear",
        "bits": 8,
        "granularity": "channel",
        "activation_bits": 8,
        "calibration": words,
    }

    def trained_on(content):
        file.write_text(content)
        return once(code, recipe=recipe, model={"tokenizer": by_word()}).folder

    first = trained_on("w1 w2 w3 w4 " * 20)
    assert trained_on("w1 w2 w3 w5 " * 20) != first
    assert trained_on("w1 w2 w3 w4 " * 20) == first


@needs_them
def test_a_training_that_fails_says_why_and_leaves_nothing(once, tmp_path):
    with pytest.raises(TrainingError, match=r"finetune w: training ended with exit status 1: Val"):
        once("raise ValueError('the loss of step 3 is nan')")
    assert not list((tmp_path / "cache" / "adapters").glob("*/"))
    with pytest.raises(TrainingError, match="training ended with exit status 0, and said nothing"):
        once("pass")


@needs_them
def test_a_step_that_does_not_end_is_stopped(once, monkeypatch):
    monkeypatch.setattr(training_once, "PATIENCE", 0.5)
    with pytest.raises(TrainingError, match="was stopped: a step took over"):
        once("import time; print('step 1', flush=True); time.sleep(60)")


def test_too_short_a_text_is_refused(once, random_text):
    short = random_text(documents=(100,), window=32)
    with pytest.raises(
        SourceError, match=r"dataset lessons has 3 windows of 32 tokens, and 8 steps"
    ):
        once(text=short)


@needs_them
def test_the_process_gives_what_training_here_gives(once, trained):
    """The real one: loads the saved model, trains, and tells what it took."""
    found = once()
    assert found.record["losses"] == pytest.approx(trained[2].losses, rel=1e-4)
    assert len(found.record["seconds"]) == SETTINGS.steps
    assert found.record["peak_mib"] is None or 0 < found.record["peak_mib"] < 2000
    assert (found.record["peak_mib"] is None) == bool(found.record["no_peak"])
    own = read_adapter(found.folder, "cpu", torch.float32)
    for name, update in read_adapter(trained[3], "cpu", torch.float32).items():
        torch.testing.assert_close(own[name].weight(), update.weight(), rtol=1e-2, atol=1e-4)


# --- all states of a tuned model -------------------------------------------------------------


@pytest.fixture
def tuned(monkeypatch, tmp_path, llama, loaded, text, execution, trained, nf4):
    """A tuned tiny Llama; its adapter is the one that was trained here."""
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    _, _, done, folder = trained
    record = {
        "losses": done.losses,
        "seconds": done.seconds,
        "peak_mib": 100.0,
        "no_peak": "",
    }
    kept = training_once.TrainedAdapter(folder, ("key",), record)
    monkeypatch.setattr("bitgate.measure.tuned.trained_adapter", lambda *_: kept)

    def make(way, name="bitsandbytes", kernel="bitsandbytes", **recipe):
        recipe = method(name).RECIPE.model_validate(recipe)
        model = loaded(llama())
        quantize = lambda: method(name).quantize(model, recipe, torch.float32)  # noqa: E731
        made = Tuned(model, recipe, quantize, text, workload(way=way), execution(kernel))
        return made, quantize().serve(execution(kernel))

    return make


def test_adapters_kept(tuned, text, items_of, metrics_of):
    """What is deployed is what was trained, so all of the gain is there."""
    measurement = KeptGains(*tuned("adapter", type="nf4"), text)
    items = items_of(measurement)
    found = metrics_of(measurement, items)
    assert found["training_gain"].low > 0
    assert found["deployed_gain"].value == pytest.approx(1, abs=1e-3)
    assert found["gain_kept"].value == pytest.approx(1, abs=1e-3), "merging would keep it"
    assert found["packed_layers"].value == found["packed_layers"].expected == 14
    windows = items["part"] == WINDOW
    assert windows.sum() == len(text) == measurement.most - SETTINGS.steps
    assert np.isnan(items["merged_nll"][~windows]).all()
    steps = items["part"] == STEP
    assert (items["loss"][steps] > 0).all()
    assert np.isnan(items["loss"][windows]).all()


def test_merged_and_quantized_by_the_recipe(tuned, text, items_of, metrics_of):
    measurement = KeptGains(*tuned("merge", "hqq", "dequantize", bits=8, group_size=64), text)
    items = items_of(measurement)
    found = metrics_of(measurement, items)
    assert found["gain_kept"].value == pytest.approx(1, abs=1e-3)
    assert found["gain_kept"].low > 0.99
    assert found["packed_layers"].value == found["packed_layers"].expected == 14
    of = {name: values[items["part"] == WINDOW] for name, values in items.items()}
    tokens = of["tokens"].sum()
    for state, name in (("base", "base_perplexity"), ("deployed", "deployed_perplexity")):
        expected = math.exp(of[f"{state}_nll"].sum() / tokens)
        assert found[name].value == pytest.approx(expected)
    gain = of["start_nll"].sum() - of["tuned_nll"].sum()
    assert found["training_gain"].value == pytest.approx(gain / tokens)
    share = (of["untuned_nll"].sum() - of["deployed_nll"].sum()) / gain
    assert found["deployed_gain"].value == pytest.approx(share)
    ratio = math.exp((of["deployed_nll"].sum() - of["base_nll"].sum()) / tokens)
    assert found["deployed_ratio"].value == pytest.approx(ratio)
    # 8 bits cost nothing: the deployed model is the merged one
    assert found["deployed_perplexity"].value == pytest.approx(
        found["merged_perplexity"].value, rel=0.01
    )


def test_scores_of_what_is_not_deployed_are_kept(tuned, text, monkeypatch):
    made, _ = tuned("merge", type="nf4")
    first = made.scores(text, 0, 4)
    assert first.keys() == {"base", "start", "tuned", "merged"}
    scored = "bitgate.measure.tuned.window_nll"
    monkeypatch.setattr(scored, lambda *_: pytest.fail("scored again"))
    assert made.scores(text, 0, 4) == first


def test_scores_are_kept_by_the_adapter_the_text_and_the_windows(
    monkeypatch, tmp_path, llama, loaded, text, random_text, execution, trained
):
    """By the key that the adapter really has."""
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "stand_in.py"
    script.write_text(
        "import pathlib, shutil, sys\n"
        f"shutil.copytree({str(trained[3])!r}, sys.argv[2], dirs_exist_ok=True)\n"
        "pathlib.Path(sys.argv[2], 'training.json').write_text('{\"losses\": [1.0]}')\n"
    )
    monkeypatch.setattr(training_once, "COMMAND", (sys.executable, "-S", str(script)))
    scored = []
    monkeypatch.setattr(
        "bitgate.measure.tuned.window_nll",
        lambda served, text, start, stop: scored.append(start) or [0.0] * (stop - start),
    )
    how = method("bitsandbytes")

    def newly_scored(text=text, part=(0, 2), weights="made here", kind="nf4", **changes):
        recipe = how.RECIPE.model_validate({"type": kind})
        model = replace(loaded(llama()), fingerprint=weights)
        quantize = lambda: how.quantize(model, recipe, torch.float32)  # noqa: E731
        of, running = workload(way="adapter", **changes), execution("bitsandbytes")
        scored.clear()
        Tuned(model, recipe, quantize, lessons, of, running).scores(text, *part)
        return len(scored)

    lessons = text
    assert newly_scored() == 4  # states
    assert newly_scored() == 0
    for way in (
        {"text": random_text(vocabulary=8, documents=(700,), window=32, seed=1)},
        {"part": (2, 4)},
        {"weights": "others"},
        {"kind": "fp4"},
        {"learning_rate": 0.02},
    ):
        assert newly_scored(**way) == 4, way
        assert newly_scored(**way) == 0, way


def test_no_adapter_is_trained_on_what_torch_does_not_run(tuned):
    made, _ = tuned("adapter", type="nf4")
    made.quantized = object
    with pytest.raises(MeasureError, match=r'w: recipe bitsandbytes-nf4: .*: set way = "merge"'):
        _ = made._start


def test_a_window_scores_what_torch_says(llama, served, text):
    base = llama()
    with torch.inference_mode():
        log_probs = base(text.tokens[:3]).logits.double().log_softmax(-1)
    for window, nll in enumerate(window_nll(served(base), text, 0, 3)):
        first = int(text.scored[window])
        rows = log_probs[window, first - 1 : -1]
        expected = -rows.gather(1, text.tokens[window, first:, None]).sum()
        assert nll == pytest.approx(float(expected), rel=1e-5)


# --- the metrics of made-up observations -------------------------------------------------------


def made_up(**shifts):
    """Two steps' and forty windows' observations: a start of 4 nats a token, and what each state
    has less, in nats a token."""
    rng = np.random.default_rng(0)
    hard = rng.normal(4, 0.3, 40)
    tokens = np.full(40, 63.0)
    of_windows = {
        f"{state}_nll": tokens * (hard - shifts.get(state, 0) + rng.normal(0, 0.01, 40))
        for state in STATES
    }
    seconds = np.concatenate([[9.0], np.full(9, 2.0), np.full(40, np.nan)])
    nothing = np.full(10, np.nan)
    return {
        "part": np.array([STEP] * 10 + [WINDOW] * 40),
        "tokens": np.concatenate([nothing, tokens]),
        "seconds": seconds,
        **{name: np.concatenate([nothing, values]) for name, values in of_windows.items()},
    }


def measurement_of(peak, why=""):
    tuned = SimpleNamespace(
        workload=SimpleNamespace(steps=10),
        record={"peak_mib": peak, "no_peak": why},
        deployed=SimpleNamespace(packed_layers=1, expected_layers=1),
    )
    return KeptGains(tuned, None, range(40))


def test_a_merge_that_loses_half(metrics_of):
    items = made_up(tuned=0.8, merged=0.4, untuned=0.1, deployed=0.7)
    found = metrics_of(measurement_of(300.0), items)
    assert found["training_gain"].value == pytest.approx(0.8, abs=0.01)
    assert found["gain_kept"].value == pytest.approx(0.5, abs=0.01)
    assert found["gain_kept"].high < 0.6, "known better than from windows that are not paired"
    assert found["deployed_gain"].value == pytest.approx(0.75, abs=0.01)
    assert found["step_seconds"].value == pytest.approx(2), "without the first step"
    assert found["training_peak_mib"].value == 300


def test_training_that_gains_nothing_has_no_share(metrics_of):
    found = metrics_of(measurement_of(300.0), made_up())
    assert not found["gain_kept"].finite
    assert found["training_gain"].finite


def test_a_state_that_is_not_finite_is_seen(metrics_of):
    items = made_up(tuned=0.8, merged=0.8, deployed=0.8)
    items["merged_nll"][20] = math.nan
    found = metrics_of(measurement_of(300.0), items)
    assert math.isnan(found["gain_kept"].value)
    assert math.isnan(found["merged_perplexity"].value)
    assert found["deployed_gain"].finite


def test_a_peak_that_is_not_known_is_said(metrics_of):
    measurement = measurement_of(None, "/proc/self/status: no such file")
    with pytest.warns(PeakWarning, match="training_peak_mib is not available: /proc/self/status"):
        found = metrics_of(measurement, made_up(tuned=0.8))
    assert "training_peak_mib" not in found


# --- what the catalog refuses ------------------------------------------------------------------


def test_a_training_text_has_enough_windows():
    with pytest.raises(ValidationError, match=r"training: dataset lessons: tokens_limit: 40 steps"):
        workload(training=dataset("lessons", tokens=100, tokens_limit=200), steps=40)
    assert workload().windows == 16


def test_what_is_trained_on_is_not_scored():
    source = {"kind": "local", "path": "/exam"}
    with pytest.raises(
        ValidationError,
        match=r'lessons may draw what exam scores: add avoid = \["exam"\] to dataset lessons, or t',
    ):
        workload(training=dataset("lessons", source=source))
    apart = dataset("lessons", source=source, avoid=(dataset("exam"),))
    assert workload(training=apart).protocol()["training"] == "lessons"
    with pytest.raises(ValidationError, match="exam may draw what exam scores: train on another"):
        workload(training=dataset("exam"))


def test_the_catalog_names_file_and_key(tmp_path):
    matrix = """
[finetune.tune]
dataset = "{dataset}"
training = "{training}"
steps = {steps}

[[matrix]]
cadence = "commit"
models = ["llama-smollm2-135m"]
recipes = ["hqq-w4g64"]
finetune = ["tune"]
"""

    def read(dataset="glosses", training="glosses-training", steps=20):
        text = matrix.format(dataset=dataset, training=training, steps=steps)
        (tmp_path / "matrix.toml").write_text(text)
        return load(tmp_path, recipe_types())

    (case,) = read().cases()
    assert case.key == "finetune[llama-smollm2-135m-hqq-w4g64-tune]"
    assert case.static_fields()["dataset"] == "glosses"
    json.dumps(case.workload.protocol())
    with pytest.raises(CatalogError, match=r"matrix.toml: \[finetune.tune\]: training: nothing is"):
        read(training="glossaries")
    with pytest.raises(CatalogError, match=r"\[finetune.tune\]: training: glosses may draw what"):
        read(training="glosses")
    with pytest.raises(
        CatalogError, match=r"\[finetune.tune\]: steps: .*greater than or equal to 8"
    ):
        read(steps=2)
    with pytest.raises(CatalogError, match=r"\[finetune.tune\]: training: dataset glosses-trai"):
        read(steps=2000)


def test_nothing_is_calibrated_with_what_is_scored(tmp_path):
    (tmp_path / "recipes.toml").write_text(
        '[[recipe]]\nmethod = "gptq"\nbits = 4\ngroup_size = 64\ncalibration = "glosses"\n'
    )
    (tmp_path / "matrix.toml").write_text(
        '[finetune.tune]\ndataset = "glosses"\ntraining = "glosses-training"\n'
        '[[matrix]]\ncadence = "commit"\nmodels = ["llama-smollm2-135m"]\n'
        'recipes = ["gptq-w4g64-glosses"]\nfinetune = ["tune"]\n'
    )
    with pytest.raises(CatalogError, match="is calibrated with glosses, which may draw what gloss"):
        load(tmp_path, recipe_types())


# --- GPTQ all the way ----------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("gptqmodel") is None, reason="pip install 'bitgate[gptq]'")
@needs_them
def test_an_adapter_on_a_gptq_model(loaded, llama, tmp_path, execution):
    """Trains through gptqmodel's own layers, and is deployed beside those of a packed kernel."""
    from dataclasses import replace

    class Bytes:
        bos_token_id = None

        def __call__(self, texts, add_special_tokens, verbose):
            return {"input_ids": [list(text.encode()) for text in texts]}

    order = np.random.default_rng(0).integers(0, 8, 3000)
    (tmp_path / "words").write_text(" ".join(f"word{i}" for i in order))
    source = {"kind": "local", "path": tmp_path / "words"}
    calibration = dataset("words", source=source, tokens=1000, tokens_limit=1000, window=64)
    recipe = method("gptq").RECIPE.model_validate(
        {"bits": 4, "group_size": 64, "symmetric": False, "calibration": calibration}
    )
    model = replace(loaded(llama()), tokenizer=Bytes())
    quantized = method("gptq").quantize(model, recipe, torch.float32)
    quantized.save(tmp_path / "model.safetensors")
    again = method("gptq").load(tmp_path / "model.safetensors", "cpu")
    tokens = torch.tensor([list(b"word1 word2 word3 word1 word2 word3 ") * 2] * 16)[:, :64]
    done = train(again.module, again.layers, tokens, SETTINGS)
    assert done.losses[-1] < done.losses[0] - 0.5
    done.module.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, "cpu", torch.float32)
    theirs = logits_of(done.module)
    own = logits_of(beside(quantized.module, adapter))
    torch.testing.assert_close(own, theirs, rtol=1e-2, atol=1e-2)
    plain = logits_of(merged(model.module, quantized.weights(), adapter))
    torch.testing.assert_close(plain, theirs, rtol=1e-2, atol=1e-2)
    packed = beside(quantized.serve(execution("cpu-int4")).module, adapter)
    assert float((logits_of(packed) - theirs).abs().max()) < 0.2 * float(theirs.abs().max())
