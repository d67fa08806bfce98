"""A head trained on a frozen base: what is saved, what is learned, what is kept."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bitgate.catalog import LabelledDataset, Model, TrainedSource
from bitgate.sources import EncodedItems, SourceError, fetch_model, fingerprint, load_items
from bitgate.sources import load_model as load
from bitgate.sources.cache import cache_directory
from bitgate.sources.linear_head import Part, Standardized, learn
from bitgate.sources.losses import Epoch, read_losses, write_losses
from bitgate.sources.train_head import features

CLASSES = ["negative", "neutral", "positive"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


# --- the arithmetic --------------------------------------------------------------------------


def lopsided(count=300, size=24, seed=0):
    """Features as of a language model: of very different sizes, around a mean far from zero; and
    labels that follow from them."""
    same, rng = np.random.default_rng(99), np.random.default_rng(seed)
    scale, mean = 10.0 ** same.uniform(-2, 2, size), same.normal(0, 6, size)
    hidden = same.normal(size=(size, 3))
    z = rng.normal(size=(count, size))
    x = scale * (z + mean)
    logits = z @ hidden + np.array([0.0, 2.0, 0.0])
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return Part(torch.tensor(x, dtype=torch.float32), torch.tensor(labels))


def settings(**fields):
    dataset = {
        "name": "some",
        "of": "texts",
        "source": {"kind": "local", "path": "unused"},
        "format": "jsonl",
        "classes": CLASSES,
    }
    data = {"kind": "trained", "dataset": dataset, "learning_rate": 0.01, **fields}
    return TrainedSource.model_validate(data)


def test_standardized_features_have_mean_0_and_deviation_1_without_an_affine_step():
    part = lopsided()
    standardized = Standardized.of(part.features)
    z, c = standardized(part.features)
    assert z.mean(0).abs().max() < 1e-9
    assert (z.std(0) - 1).abs().max() < 1e-9
    assert c.mean() == pytest.approx(1)
    assert c.std() < 0.1
    doubled, twice = standardized(2 * part.features)  # linear: no constant is added anywhere
    torch.testing.assert_close(doubled, 2 * z)
    torch.testing.assert_close(twice, 2 * c)


def test_the_folded_weight_gives_the_logits_of_the_unfolded_one():
    part, other = lopsided(), lopsided(seed=5)
    standardized = Standardized.of(part.features)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 24, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, generator=generator, dtype=torch.float64)
    folded = standardized.folded(weight, bias)
    for features_ in (part.features, other.features, torch.zeros(2, 24)):
        z, c = standardized(features_)
        torch.testing.assert_close(features_.double() @ folded.T, z @ weight.T + c[:, None] * bias)


def test_as_good_as_logistic_regression_with_an_intercept():
    """scikit-learn's, on features that are standardized as usual, at the same penalty."""
    training, validation = lopsided(400), lopsided(400, seed=7)
    decay = 0.01
    weight, epochs, kept = learn(
        training, validation, 3, settings(epochs=60, weight_decay=decay, learning_rate=0.03)
    )
    mean, deviation = training.features.mean(0), training.features.std(0)
    x, y = (((p.features - mean) / deviation).double().numpy() for p in (training, validation))
    theirs = LogisticRegression(C=1 / (decay * 400), max_iter=1000).fit(x, training.labels)
    chance = np.log(theirs.predict_proba(y)[np.arange(400), validation.labels]).mean()
    best = epochs[kept - 1]
    assert best.validation_loss == pytest.approx(-chance, abs=0.05)
    assert best.validation_accuracy == pytest.approx(theirs.score(y, validation.labels), abs=0.03)
    assert best.validation_accuracy > validation.labels.bincount().max() / 400 + 0.2
    logits = validation.features.double() @ weight.T
    right = (logits.argmax(-1) == validation.labels).double().mean()
    assert float(right) == best.validation_accuracy


def test_the_epoch_with_the_lowest_validation_loss_is_kept():
    few, validation = lopsided(40), lopsided(200, seed=7)
    hasty = settings(epochs=60, weight_decay=0.0, learning_rate=0.1, batch=8)
    weight, epochs, kept = learn(few, validation, 3, hasty)
    losses = [epoch.validation_loss for epoch in epochs]
    assert losses[kept - 1] == min(losses) < losses[-1]
    assert epochs[-1].training_loss < epochs[kept - 1].training_loss  # it overfits
    assert [epoch.epoch for epoch in epochs] == list(range(1, 61))
    found = torch.nn.functional.cross_entropy(
        validation.features.double() @ weight.T, validation.labels
    )
    assert float(found) == pytest.approx(min(losses))


def test_without_validation_the_last_epoch_is_kept():
    part = lopsided(60)
    _, epochs, kept = learn(part, None, 3, settings(epochs=5))
    assert kept == 5
    assert epochs[-1].validation_loss is None


def test_every_setting_matters_and_a_seed_repeats():
    part = lopsided(100)
    first = learn(part, None, 3, settings(epochs=5))[0]
    assert torch.equal(first, learn(part, None, 3, settings(epochs=5))[0])
    for change in (
        {"epochs": 6},
        {"batch": 7},
        {"learning_rate": 0.02},
        {"weight_decay": 1.0},
        {"label_smoothing": 0.1},
        {"seed": 1},
    ):
        changed = {"epochs": 5, **change}
        assert not torch.allclose(learn(part, None, 3, settings(**changed))[0], first), change


# --- the model -------------------------------------------------------------------------------


@pytest.fixture
def tiny(llama, by_word, tmp_path):
    """A model with a head on a tiny base, for texts whose last words say to which class they
    belong; as its dataset and the settings of its source say."""
    base = tmp_path / "base"
    llama(pad_token_id=None).save_pretrained(base)
    by_word(pad_token=None).save_pretrained(base)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(400):
        rest = " ".join(f"w{n}" for n in rng.integers(10, 200, rng.integers(1, 9)))
        said = " ".join([f"w{number % 3}"] * 3)
        rows.append(json.dumps({"text": f"{rest} {said}", "label": number % 3}))
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))

    def make(dataset=(), tokenizer=None, **changes):
        data = {
            "name": "words",
            "of": "texts",
            "source": {"kind": "local", "path": str(tmp_path / "texts.jsonl")},
            "format": "jsonl",
            "classes": CLASSES,
            "items": 40,
            "train_items": 250,
            "validation_items": 30,
        }
        found = LabelledDataset.model_validate({**data, **dict(dataset)})
        local = {"kind": "local", "path": str(base)}
        below = Model.model_validate(
            {"name": "base", "family": "llama", "source": local, "tokenizer": tokenizer}
        )
        source = {"kind": "trained", "base": below, "dataset": found, "learning_rate": 0.03}
        return Model.model_validate(
            {
                "name": "words",
                "family": "llama",
                "task": "text-classification",
                "source": {**source, "epochs": 10, **changes},
            }
        )

    return make


def test_what_is_saved_is_a_classifier_for_transformers(tiny, llama):
    model = tiny()
    folder = fetch_model(model)
    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert module.config.id2label == dict(enumerate(CLASSES))
    assert module.config.pad_token_id == tokenizer.pad_token_id is not None
    for name, weight in llama(pad_token_id=None).model.state_dict().items():  # frozen
        assert torch.equal(module.model.state_dict()[name], weight)

    items = load_items(model.source.dataset)
    encoded = EncodedItems(items, tokenizer, 64)
    with torch.no_grad():
        said = module(**encoded.inputs(0, 40)).logits
        alone = torch.cat([module(**encoded.inputs(n, n + 1)).logits for n in range(40)])
    torch.testing.assert_close(said, alone)
    right = (said.argmax(-1) == torch.tensor(items.labels)).float().mean()
    assert right > 0.8  # of items that it has not seen; a third by chance

    losses = read_losses(folder)
    assert len(losses.epochs) == 10
    assert losses.epochs[-1].training_loss < losses.epochs[0].training_loss


def test_the_saved_head_has_the_losses_that_were_seen(tiny):
    model = tiny()
    folder = fetch_model(model)
    losses = read_losses(folder)
    loaded = load(model)
    for part in ("training", "validation"):
        items = load_items(model.source.dataset, part)
        encoded = EncodedItems(items, loaded.tokenizer, 64)
        logits = loaded.module(**encoded.inputs(0, len(items))).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(items.labels))
        told = getattr(losses.epochs[losses.kept - 1], f"{part}_loss")
        assert float(loss) == pytest.approx(told, rel=1e-3)


def test_features_are_the_last_tokens_hidden_states(classifier, labelled_texts):
    module, items = classifier(), labelled_texts(40)
    found = features(module, items, "test")
    for number in range(40):
        ids = items.inputs(number, number + 1)["input_ids"]
        last = module.model(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(found[number], last)
    assert module.score.weight.shape == (3, 128)  # the head is on it again


def test_trained_once_and_its_features_are_kept_for_other_heads(tiny):
    first = fetch_model(tiny())
    place = cache_directory() / "features"
    kept = {path: path.stat().st_mtime_ns for path in place.glob("*/features.safetensors")}
    assert len(kept) == 2
    assert fetch_model(tiny()) == first
    other = fetch_model(tiny(weight_decay=1.0))
    assert other != first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(place.glob("*/features.safetensors"))) == 2
    fetch_model(tiny(dataset={"longest": 4}))  # other inputs, other features
    assert len(list(place.glob("*/features.safetensors"))) == 4


def test_the_fingerprint_follows_what_it_was_made_of(tiny):
    prints = {
        fingerprint(model, torch.float32)
        for model in (
            tiny(),
            tiny(seed=1),
            tiny(dataset={"train_items": 240}),
            tiny(dataset={"longest": 4}),
            tiny(dataset={"classes": ["bad", "neither", "good"]}),
            tiny(dataset={"classes": [*CLASSES, "never seen"]}),
        )
    }
    assert len(prints) == 6
    assert fingerprint(tiny(), torch.float32) in prints


def test_renamed_classes_and_more_of_them_are_in_the_model(tiny):
    def heads(classes):
        module = load(tiny(dataset={"classes": classes}, epochs=1)).module
        return module.config.id2label, module.score.weight.shape[0]

    for classes in (CLASSES, ["bad", "neither", "good"], [*CLASSES, "never seen"]):
        assert heads(classes) == (dict(enumerate(classes)), len(classes))


def test_a_head_is_another_one_where_the_base_reads_otherwise(tiny, monkeypatch):
    """Features in half precision on an accelerator are not those of a CPU."""
    here = fingerprint(tiny(), torch.float32)
    monkeypatch.setattr("bitgate.sources.train_head.pick_device", lambda _: "cuda")
    there = fingerprint(tiny(), torch.float32)
    monkeypatch.setattr("bitgate.sources.train_head.serving_dtype", lambda _: torch.bfloat16)
    assert len({here, there, fingerprint(tiny(), torch.float32)}) == 3


# --- a tokenizer in a directory of its own -----------------------------------------------------


@pytest.fixture
def apart(tiny, by_word, tmp_path):
    """The directory of the base's tokenizer, which lies elsewhere."""
    tiny()
    for file in (tmp_path / "base").glob("*token*"):
        file.unlink()
    by_word(pad_token=None).save_pretrained(tmp_path / "apart")
    return tmp_path / "apart"


def test_a_head_reads_with_the_bases_own_tokenizer(tiny, by_word, apart):
    model = tiny(tokenizer=str(apart), epochs=1)
    first = fetch_model(model)
    assert len(AutoTokenizer.from_pretrained(first)) == 203
    assert load(model).tokenizer.pad_token is not None
    by_word(words=150, pad_token=None).save_pretrained(apart)
    other = fetch_model(tiny(tokenizer=str(apart), epochs=1))
    assert other != first
    assert len(AutoTokenizer.from_pretrained(other)) == 153


def test_a_base_without_a_tokenizer_is_refused(tiny, apart, tmp_path):
    with pytest.raises(SourceError, match=r"source.base: .*base has no tokenizer; give the base"):
        fetch_model(tiny())
    with pytest.raises(SourceError, match=r"source.base: base: tokenizer: there is no .*nowhere"):
        fetch_model(tiny(tokenizer=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"train_items": 0, "validation_items": 0}, "train_items: it has none to train with"),
        ({"train_items": 380}, "different items, 420 are asked for"),
    ],
)
def test_what_cannot_be_trained(tiny, dataset, message):
    with pytest.raises(SourceError) as raised:
        fetch_model(tiny(dataset=dataset))
    assert message in str(raised.value)
    assert not list((cache_directory() / "trained").glob("*[!k]/"))


# --- training.json ---------------------------------------------------------------------------


def test_losses_are_read_as_they_were_written(tmp_path):
    epochs = (Epoch(1, 0.9, 0.5, 0.95, 0.45), Epoch(2, 0.8, 0.6, 0.97, 0.4), Epoch(3, 0.7, 0.7))
    write_losses(tmp_path, epochs, 1)
    found = read_losses(tmp_path)
    assert (found.epochs, found.kept) == (epochs, 1)
    assert found.best() == epochs[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; was this model trained here?"),
        ("{", "is damaged"),
        ('{"epochs": [{"epoch": 1}]}', "is damaged"),
        ('{"epochs": []}', "has no epochs"),
    ],
)
def test_losses_that_cannot_be_read(tmp_path, content, message):
    if content is not None:
        (tmp_path / "training.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        read_losses(tmp_path)
