"""Summaries beside the base's: ROUGE counted by hand, generation against transformers' own."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from bitgate import statistics
from bitgate.catalog import Dataset, RougeWorkload
from bitgate.kernels.generation import generate
from bitgate.measure.base import BaseModel
from bitgate.measure.measurement import MeasureError
from bitgate.measure.rouge import paired_summaries, rouge
from bitgate.sources import LoadedModel, SourceError, load_prompts
from bitgate.sources.prompts import opening

# --- scores, counted by hand: F1 is twice what both share over the lengths of both -------------


@pytest.mark.parametrize(
    ("reference", "text", "one", "two", "longest"),
    [
        # 6 and 7 words: the, cat, on, mat; 5 and 6 bigrams: the cat; in order: the cat on mat
        ("the cat sat on the mat", "the cat lay on a mat today", 8 / 13, 2 / 11, 8 / 13),
        # all 4 words, none of the 3 and 3 bigrams, in order only one word
        ("one two three four", "four three two one", 1, 0, 2 / 8),
        # 4 and 2 words: `the` counts once, as often as in the text; 3 bigrams and 1, none shared
        ("the the the cat", "the dog", 2 / 6, 0, 2 / 6),
        # 3 and 5 words: all 3; 2 and 4 bigrams: b c; in order: a b c
        ("a b c", "a x b c y", 6 / 8, 2 / 6, 6 / 8),
        # neither capitals nor punctuation are words
        ("The cat, at last!", "the cat at last", 1, 1, 1),
        # no stemming: cats are no cat
        ("cats run", "cat runs", 0, 0, 0),
        ("a word", "", 0, 0, 0),
        ("", "a word", 0, 0, 0),
        ("", "", 1, 1, 1),
        ("«»", "«»", 1, 1, 1),
    ],
)
def test_rouge(reference, text, one, two, longest):
    found = rouge(reference, text)
    assert found == pytest.approx({"rouge1": one, "rouge2": two, "rougeL": longest})


# --- generation ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module(llama):
    return llama(vocab_size=257, max_position_embeddings=640)


@pytest.fixture(scope="module")
def quantized(module, hqq, execution):
    return hqq(module, bits=2, group_size=32).serve(execution())


@pytest.fixture
def base(module, execution, tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    return BaseModel(module, execution("torch"), "made here")


@pytest.mark.parametrize("output", [1, 2, 20])
def test_greedy_text_is_that_of_transformers(base, module, output):
    import torch

    for prompt in ([1, 2, 3], list(range(40, 90))):
        wanted = module.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=output,
            min_new_tokens=output,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert generate(base, prompt, output) == wanted[0, len(prompt) :].tolist()


def test_a_served_model_says_what_it_reads_next(base):
    import torch

    fresh = BaseModel(base.module, base.execution, "made here")
    with pytest.raises(RuntimeError, match=r"comes after prefill\(\)"):
        _ = fresh.upcoming
    fresh.prefill(torch.tensor([[1, 2, 3], [4, 5, 6]]), 2)
    likeliest = fresh.logits(torch.tensor([[1, 2, 3], [4, 5, 6]]))[:, -1].argmax(-1)
    assert fresh.upcoming.tolist() == likeliest.tolist()
    assert fresh.upcoming.tolist() != fresh.decode_step().tolist()


# --- documents and prompts -------------------------------------------------------------------


@pytest.fixture
def workload(tmp_path, documents):
    """Makes a workload of documents, with a summary of each that someone wrote."""

    def make(texts=None, **changes):
        rows = [
            {"text": f"{text}{at} ends it.", "written": f"Number {at} of them."}
            for at, text in enumerate(texts or [d[at * 500 :] for d in documents for at in (0, 1)])
        ]
        file = tmp_path / "texts.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        source = {"kind": "local", "path": str(file)}
        dataset = Dataset.model_validate({"name": "made-up", "source": source, "format": "jsonl"})
        fields = {"kind": "rouge", "name": "it", "dataset": dataset, "documents": 4, "output": 12}
        return RougeWorkload.model_validate({**fields, "characters": 200, **changes})

    return make


@pytest.fixture
def model(module, byte_tokenizer):
    return LoadedModel(module, byte_tokenizer, "made here", None)


def test_a_document_is_cut_at_the_end_of_a_sentence():
    text = "One is here. Two is\n\nthere. Three is nowhere at all."
    assert opening(text, 12) == "One is here."
    assert opening(text, 25) == "One is here."
    assert opening(text, 26) == "One is here. Two is there."
    assert opening(text, 500) == "One is here. Two is there. Three is nowhere at all."
    assert opening(text, 11) == ""
    assert opening("", 100) == ""


def test_prompts_say_what_the_workload_says(workload, model):
    wanted = workload(prompt="Shorter: {text} So:", reference="lead")
    prompts = load_prompts(wanted, model)
    assert len(prompts) == len(set(prompts.names)) == 4
    for tokens, reference in zip(prompts.tokens, prompts.references, strict=True):
        asked = prompts.read(tokens)
        assert asked.startswith(f"Shorter: {reference}")
        assert asked.endswith(". So:")
        assert len(asked) <= len("Shorter:  So:") + 200


def test_a_chat_template_is_used(workload, model, byte_tokenizer, monkeypatch):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<answer>"
    monkeypatch.setattr(byte_tokenizer, "chat_template", template)
    prompts = load_prompts(workload(prompt="{text}"), model)
    for tokens in prompts.tokens:
        assert prompts.read(tokens).startswith("<user>")
        assert prompts.read(tokens).endswith(".<answer>")


def test_references_from_a_column(workload, model):
    prompts = load_prompts(workload(reference="column", reference_column="written"), model)
    assert all(reference.startswith("Number ") for reference in prompts.references)
    assert load_prompts(workload(reference="none"), model).references is None


def test_what_follows_the_end_is_not_read(workload, model):
    prompts = load_prompts(workload(), model)
    end = model.tokenizer.eos_token_id
    words = model.tokenizer.encode("It ends. Or not.")
    assert prompts.read([*words[:8], end, *words[8:]]) == "It ends."
    assert prompts.read([end, *words]) == ""
    assert prompts.read(words) == "It ends. Or not."


def test_all_ends_that_a_model_names_count(workload, model, monkeypatch):
    monkeypatch.setattr(model.module.generation_config, "eos_token_id", [7, 9])
    assert load_prompts(workload(), model).ends == {7, 9, model.tokenizer.eos_token_id}


def test_what_was_calibrated_with_is_not_summarized(workload, model):
    wanted = workload()
    before = load_prompts(wanted, model)
    text = before.read(before.tokens[0])
    seen = [" ".join(text.split()[-8:])]
    after = load_prompts(wanted, model, seen)
    assert before.names[0] not in after.names
    assert [name for name in before.names[1:] if name in after.names] == list(after.names[:-1])


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (None, {"documents": 60}, "too few: dataset made-up has 6 documents .* 60 are asked for"),
        (None, {"characters": 1}, "has 0 documents whose first sentence has at most 1 charac"),
        (
            None,
            {"reference": "column", "reference_column": "spoken"},
            "no JSON object with the key 'spoken'",
        ),
    ],
)
def test_documents_that_will_not_do(workload, model, texts, changes, message):
    with pytest.raises(SourceError, match=message):
        load_prompts(workload(texts, **changes), model)


def test_no_text_at_all(workload, model, tmp_path):
    wanted = workload()
    (tmp_path / "texts.jsonl").write_text('{"text": " "}')
    with pytest.raises(SourceError, match="holds no text at all"):
        load_prompts(wanted, model)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "Not summarized yet.", "written": ""},
            "'Not summarized yet.' in 'text', and not",
        ),
        (
            {"text": " ", "written": "Of nothing."},
            "'Of nothing.' in 'written', and nothing in 'text'",
        ),
    ],
)
def test_a_record_has_both_document_and_reference(workload, model, tmp_path, row, message):
    wanted = workload(reference="column", reference_column="written")
    file = tmp_path / "texts.jsonl"
    rows = file.read_text()
    file.write_text(f"{json.dumps(row)}\n{rows}")
    with pytest.raises(SourceError, match=f"dataset made-up: record 1: it has {message}"):
        load_prompts(wanted, model)
    # as many of either, and yet of other records
    other = {"text": row["written"] or " ", "written": row["text"].strip()}
    file.write_text(f"{json.dumps(row)}\n{rows}\n{json.dumps(other)}")
    with pytest.raises(SourceError, match="record 1: it has"):
        load_prompts(wanted, model)


def test_a_record_with_neither_moves_no_reference(workload, model, tmp_path):
    wanted = workload(reference="column", reference_column="written")
    before = load_prompts(wanted, model)
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": " ", "written": ""}\n' + file.read_text())
    assert load_prompts(wanted, model).references == before.references


def test_only_records_have_a_column_of_references(workload, model):
    wanted = workload(reference="column", reference_column="written")
    for changes, message in (
        ({"format": "plain"}, "format: of plain there is no column 'written'"),
        ({"join": " "}, "format: of jsonl with `join` there is no column 'written'"),
    ):
        dataset = wanted.dataset.model_copy(update=changes)
        with pytest.raises(SourceError, match=message):
            load_prompts(wanted.model_copy(update={"dataset": dataset}), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "Summarize."}, "`prompt` must say where the document stands"),
        ({"reference": "column"}, "`reference_column` goes with `reference` column"),
        ({"reference_column": "written"}, "`reference_column` goes with `reference` column"),
        ({"documents_limit": 3}, "`documents_limit` must be at least `documents`, 4"),
        ({"documents": 2}, "greater than 2"),
    ],
)
def test_what_is_wrong_in_the_matrix(workload, changes, message):
    with pytest.raises(ValidationError, match=message):
        workload(**changes)


# --- the measurement -------------------------------------------------------------------------


def test_summaries_are_compared_document_by_document(
    base, quantized, model, workload, items_of, metrics_of
):
    wanted = workload(reference="column", reference_column="written", documents_limit=5)
    prompts = load_prompts(wanted, model)
    measurement = paired_summaries(quantized, base, prompts, wanted)
    assert (measurement.least, measurement.most) == (4, 5)
    items = items_of(measurement)
    found = metrics_of(measurement, items)
    assert list(items["id"]) == list(prompts.names)
    for at, tokens in enumerate(prompts.tokens):
        own, other = (prompts.read(generate(m, tokens, 12)) for m in (quantized, base))
        assert (items["summary"][at], items["base_summary"][at]) == (own, other)
        reference = prompts.references[at]
        for kind, value in rouge(other, own).items():
            assert items[kind][at] == value
            assert items[f"{kind}_reference"][at] == rouge(reference, own)[kind]
            assert items[f"base_{kind}_reference"][at] == rouge(reference, other)[kind]
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert found[kind].value == pytest.approx(items[kind].mean())
        limits = statistics.wilson(items[kind].mean(), 5, 0.98)
        assert (found[kind].low, found[kind].high) == pytest.approx(limits)
        difference = items[f"{kind}_reference"] - items[f"base_{kind}_reference"]
        assert found[f"{kind}_reference_difference"].value == pytest.approx(difference.mean())


def test_the_same_model_writes_the_same(base, model, workload, items_of, metrics_of):
    wanted = workload()
    measurement = paired_summaries(base, base, load_prompts(wanted, model), wanted)
    found = metrics_of(measurement, items_of(measurement))
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert found[kind].value == found[kind].high == 1
        assert 0.4 < found[kind].low < 1, "four documents are no proof"
        assert found[f"{kind}_reference_difference"].value == 0


def test_the_base_writes_once(base, quantized, model, workload, items_of, monkeypatch):
    wanted = workload(reference="none")
    prompts = load_prompts(wanted, model)
    first = items_of(paired_summaries(quantized, base, prompts, wanted))
    assert "rouge1_reference" not in first
    monkeypatch.setattr(base, "module", None)
    again = items_of(paired_summaries(quantized, base, prompts, wanted))
    for key, values in first.items():
        np.testing.assert_array_equal(values, again[key])


def test_what_does_not_fit_into_the_context(base, quantized, model, workload):
    wanted = workload(characters=500, output=200)
    prompts = load_prompts(wanted, model)
    with pytest.raises(
        MeasureError,
        match=r"rouge it: a prompt of \d+ tokens and an output of 200 do not fit into the model's "
        "context of 640; lower `characters` or `output`",
    ):
        paired_summaries(quantized, base, prompts, wanted)
