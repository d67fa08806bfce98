"""The default model and text, fetched for real into the shared cache. Needs a package registry."""

from pathlib import Path

import pytest

from bitgate.catalog import Catalog, reading
from bitgate.sources import load_documents, load_model, windows

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def entries():
    """The default catalog's models and datasets; those of the checkout beside them."""
    found = Catalog()
    for folder in (reading.DEFAULTS, Path(__file__).parents[2] / "fixtures"):
        reading._read_models(found, folder / "models.toml")
        reading._read_datasets(found, folder / "datasets.toml")
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
