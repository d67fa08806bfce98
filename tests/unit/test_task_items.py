"""Items made of documents, and what of a text they may not use."""

import json
import socket

import pytest
from pydantic import ValidationError

from bitgate.catalog import Dataset, TaskWorkload
from bitgate.sources import SourceError, task_items
from bitgate.sources.task_items import cloze, last_word, sentences, texts, write_items


@pytest.fixture
def workload(tmp_path, monkeypatch, documents):
    """Makes a workload whose dataset has these documents, and a cache of its own."""
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "text.jsonl"

    def make(task="bitgate_cloze", documents=documents, **changes):
        file.write_text("\n".join(json.dumps({"text": document}) for document in documents))
        source = {"kind": "local", "path": str(file)}
        dataset = Dataset.model_validate({"name": "made-up", "source": source, "format": "jsonl"})
        fields = {"kind": "task", "name": "it", "task": task, "dataset": dataset, "items": 10}
        return TaskWorkload.model_validate({**fields, **changes})

    return make


def flat(document):
    return document.replace("\n\n", " ")


# --- what an item is -------------------------------------------------------------------------


def test_a_cloze_item_is_a_passage_with_three_wrong_endings_of_its_document(documents):
    items = list(cloze(documents, 0))
    assert len(items) > 20
    for item in items:
        document = documents[item["document"]]
        right = item["choices"][item["gold"]]
        assert f"{item['context']} {right}" in document
        assert len(set(item["choices"])) == 4
        ends = {" ".join(sentence.split()[-6:]) for sentence in sentences(flat(document))}
        assert set(item["choices"]) <= ends
        assert not any(wrong in item["context"] for wrong in item["choices"] if wrong != right)
    assert {item["gold"] for item in items} == {0, 1, 2, 3}


def test_the_last_word_has_been_read_before(documents):
    items = list(last_word(documents, 0))
    assert len(items) > 20
    for item in items:
        assert f"{item['context']} {item['word']}." in documents[item["document"]]
        assert item["word"] in item["context"].split() + item["context"].lower().split()


@pytest.mark.parametrize("make", [cloze, last_word])
def test_the_order_is_one_of_hashes(make, documents):
    """Another document leaves the others' items in theirs; another seed does not."""
    few, more = list(make(documents[:2], 0)), list(make(documents, 0))
    assert few == [item for item in more if item["document"] < 2]
    assert few != more[: len(few)], "documents are mixed"
    assert [item["id"] for item in make(documents, 1)] != [item["id"] for item in more]
    assert len({item["id"] for item in more}) == len(more)


@pytest.mark.parametrize("make", [cloze, last_word])
def test_a_paragraph_gives_one_item_at_most(make, documents):
    used = []
    for item in make(documents, 0):
        paragraphs = documents[item["document"]].split("\n\n")
        used += [(item["document"], n) for n, p in enumerate(paragraphs) if item["context"] in p]
    assert len(used) == len(set(used))


# --- what is written -------------------------------------------------------------------------


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_items_are_made_once_and_without_a_network(workload, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    wanted = workload(items_limit=12)
    path = write_items(wanted, wanted.dataset, [])
    assert len(read(path)) == 12
    monkeypatch.setitem(task_items.MAKERS, "bitgate_cloze", lambda *_: pytest.fail("made again"))
    assert write_items(wanted, wanted.dataset, []) == path


@pytest.mark.parametrize("task", ["bitgate_cloze", "bitgate_lastword"])
def test_what_was_calibrated_with_is_not_asked(workload, task):
    wanted = workload(task)
    before = read(write_items(wanted, wanted.dataset, []))
    first = texts(before[0])[-1].split()
    seen = [" ".join(first[-9:]), "nothing that stands in the text but one two three four five"]
    after = read(write_items(wanted, wanted.dataset, seen))
    assert len(after) == len(before)
    assert before[0] not in after
    # the others stay, in their order, but for those that share the run as well
    kept = [item for item in before[1:] if item in after]
    assert kept == after[: len(kept)]
    assert len(kept) >= len(before) - 3


def test_seven_words_that_two_texts_share_are_no_harm(workload):
    wanted = workload()
    before = read(write_items(wanted, wanted.dataset, []))
    seen = [" ".join(text.split()[:7]) for item in before for text in texts(item)]
    assert read(write_items(wanted, wanted.dataset, seen)) == before


def test_too_few_items(workload):
    wanted = workload(items=500)
    with pytest.raises(
        SourceError,
        match=r"task it: too few: \d+ items of bitgate_cloze can be made of dataset made-up, "
        "500 are asked for; lower `items`",
    ):
        write_items(wanted, wanted.dataset, [])


def test_a_text_that_no_item_can_be_made_of(workload):
    wanted = workload(documents=["Too short. Nothing here."])
    with pytest.raises(SourceError, match="too few: 0 items"):
        write_items(wanted, wanted.dataset, [])


# --- what TOML may say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": None}, "`task` bitgate_cloze needs a `dataset` to draw its items from"),
        ({"task": "arc_easy"}, "`dataset` goes with bitgate_cloze and bitgate_lastword; arc_easy"),
        ({"task": "bitgate_close"}, "did you mean 'bitgate_cloze'"),
        ({"shots": 2}, "has no examples; leave `shots` out"),
        ({"items_limit": 9}, "`items_limit` must be at least `items`, 10"),
    ],
)
def test_what_is_wrong_in_the_matrix(workload, changes, message):
    with pytest.raises(ValidationError, match=message):
        workload(**changes)
