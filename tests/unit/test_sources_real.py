"""The default model and text, fetched for real into the shared cache. Needs a package registry."""

from pathlib import Path

import pytest

from bitgate.catalog import Catalog, load_entries, reading
from bitgate.quantize import shapes_of
from bitgate.quantize.lock import Lock
from bitgate.sources import (
    SourceError,
    fetch_config,
    fetch_model,
    load_documents,
    load_items,
    load_model,
    shared_item,
    shared_run,
    windows,
)
from bitgate.sources.architecture import skeleton

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def entries():
    """The default catalog's models and datasets; those of the checkout beside them."""
    found = Catalog()
    for folder in (reading.DEFAULTS, Path(__file__).parents[2] / "fixtures"):
        reading._read_datasets(found, folder / "datasets.toml")
        reading._read_models(found, folder / "models.toml")
    return found


def test_the_packaged_model_scores_the_packaged_text(entries):
    loaded = load_model(entries.models["llama-smollm2-135m"])
    module = loaded.module
    assert sum(parameter.numel() for parameter in module.parameters()) == 134_515_008
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert not getattr(module.config, "quantization_config", None)

    dataset = entries.datasets["enwiki"]
    documents = load_documents(dataset)
    assert len(documents) == 93
    assert 2.3e6 < sum(map(len, documents)) < 2.6e6
    assert documents[0].startswith("Anarchism is a political philosophy that advocates")
    assert not any(mark in text for text in documents for mark in ("{{", "[[", "<ref", "&nbsp;"))

    drawn = windows(dataset, loaded.tokenizer, documents)
    assert drawn.tokens.shape[1] == dataset.window + dataset.bos
    assert drawn.scored_tokens >= (dataset.tokens_limit or 2 * dataset.tokens)
    assert len(set(drawn.document[:32].tolist())) > 20


def test_the_1b_shape_has_its_parameters(entries):
    from bitgate.sources.architecture import read_config
    from bitgate.sources.memory import count_parameters

    config = read_config(entries.models["llama-3.2-1b-shape"], None)
    assert count_parameters(config) == 1_235_814_400


@pytest.mark.parametrize(
    ("member", "rows", "classes"),
    [
        ("tweets", 4200, [1087, 768, 2345]),
        ("movieReviewSnippets", 10605, None),
        ("amazonReviewSnippets", 3708, None),
        ("nytEditorialSnippets", 5190, None),
    ],
)
def test_the_packaged_tweets_and_their_neighbours(entries, member, rows, classes):
    from bitgate.sources.labelled_texts import scored_tsv

    dataset = entries.labelled["tweets"]
    options = {"member": f"{member}_GroundTruth.txt"}
    dataset = dataset.model_copy(update={"options": options})
    texts, labels = scored_tsv(dataset, dataset.source, "labelled tweets")
    assert len(texts) == len(labels) == rows
    counts = [labels.count(label) for label in range(3)]
    assert classes in (None, counts)
    assert all(counts)
    assert not any("&lt;" in text or "\n" in text for text in texts)


def test_the_packaged_tweets_come_in_variants_that_never_straddle(entries):
    dataset = entries.labelled["tweets"]
    lessons, held, exam = (load_items(dataset, p) for p in ("training", "validation", "evaluated"))
    for one, other in ((lessons, exam), (held, exam), (lessons, held)):
        assert shared_item(one, other) is None
    with pytest.raises(SourceError, match="too few: 4045 different items"):
        load_items(dataset.model_copy(update={"items_limit": 4046}))


def test_what_calibrates_is_never_scored():
    """The default texts, by their tokens; and a text is found in itself."""
    from bitgate.quantize import recipe_types
    from bitgate.sources.tokenizer import read_tokenizer

    entries = load_entries(Path(__file__).parents[2] / "fixtures", recipe_types())
    tokenizer = read_tokenizer(fetch_model(entries.models["llama-smollm2-135m"]))
    documents = load_documents(entries.datasets["enwiki"])
    lessons, *exams = (
        windows(entries.datasets[name], tokenizer, documents)
        for name in ("enwiki-calibration", "enwiki", "enwiki-512")
    )
    assert lessons.tokens.numel() == 32 * 256
    for exam in exams:
        assert shared_run(lessons, exam) is None
    assert shared_run(exams[1], exams[0]) is not None


def test_the_header_of_a_gguf_file_tells_the_shapes(entries, tmp_path, monkeypatch):
    """Without converting it; the lock that is shipped has them."""
    model = entries.models["llama-smollm2-135m"]
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path))
    shapes = shapes_of(skeleton(fetch_config(model)))
    assert shapes == Lock.read(reading.DEFAULTS).current(model).shapes()
    assert not list(tmp_path.glob("gguf/*"))
