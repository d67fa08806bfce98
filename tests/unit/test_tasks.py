"""Tasks answered through Bitgate's models, against lm-eval with its own model for transformers."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bitgate.catalog import Dataset, TaskWorkload
from bitgate.kernels.continuations import TooLongError, score
from bitgate.measure.base import BaseModel
from bitgate.measure.language_model import language_model
from bitgate.measure.measurement import MeasureError
from bitgate.measure.tasks import paired_answers
from bitgate.sources import HubUnavailable, SourceError, load_questions, tasks

KNOWN = {
    "arc_easy": ("arc/arc_easy.yaml", "multiple_choice"),
    "gsm8k": ("gsm8k/gsm8k.yaml", "generate_until"),
    "arc": (None, None),
}


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    return byte_tokenizer


@pytest.fixture(scope="module")
def base(llama, execution):
    module = llama(vocab_size=257, max_position_embeddings=640)
    return BaseModel(module, execution("torch"), "made here")


@pytest.fixture(scope="module")
def quantized(base, hqq, execution):
    """At 2 bits, so that nothing agrees by itself."""
    return hqq(base.module, bits=2, group_size=32).serve(execution())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def workload(tmp_path, documents):
    def make(task="bitgate_cloze", **changes):
        fields = {"kind": "task", "name": "it", "task": task, "items": 12, "batch": 5}
        if task.startswith("bitgate_"):
            file = tmp_path / "text.jsonl"
            file.write_text("\n".join(json.dumps({"text": text}) for text in documents))
            source = {"kind": "local", "path": str(file)}
            made = {"name": "made-up", "source": source, "format": "jsonl"}
            fields["dataset"] = Dataset.model_validate(made)
        return TaskWorkload.model_validate({**fields, **changes})

    return make


@pytest.fixture
def a_task(tmp_path, monkeypatch, documents):
    """Makes a task as those that come with lm-eval are: YAML, data, examples."""

    def make(items=20, **changes):
        def doc(at):
            words = documents[0].split()
            choices = [" ".join(words[9 * at + 3 * k :][:3]) for k in range(3 - at % 2)]
            return {
                "question": " ".join(words[-7 * at - 7 :][:7]),
                "choices": choices,
                "gold": at % 2,
            }

        files = {}
        for split, start in (("train", 100), ("test", 0)):
            files[split] = str(tmp_path / f"{split}.jsonl")
            rows = [json.dumps(doc(start + at)) for at in range(items)]
            Path(files[split]).write_text("\n".join(rows))
        config = {
            "task": "made_up",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "data")},
            "training_split": "train",
            "fewshot_split": "train",
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in ("acc", "acc_norm")
            ],
        }
        path = tmp_path / "made_up.yaml"
        path.write_text(json.dumps({**config, **changes}))  # which is YAML, too
        monkeypatch.setattr(tasks, "_find", lambda name: path)
        return path

    return make


def by_lm_eval(module, tokenizer, questions, shots=0, samples=None):
    """lm-eval's own numbers and answers, by its own model."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=4, device="cpu")
    return lm_eval.simple_evaluate(
        model=model,
        tasks=[questions.task],
        num_fewshot=shots,
        samples=samples and {questions.task.task_name: samples},
        bootstrap_iters=0,
    )


# --- which item it is ------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["bitgate_cloze", "bitgate_lastword"])
def test_an_item_is_known_by_what_it_says_wherever_it_stands(task, workload, tokenizer, documents):
    def known(wanted):
        return [(q.name, q.doc["context"]) for q in load_questions(wanted, tokenizer).items]

    wanted = workload(task)
    first = known(wanted)
    assert len(dict(first)) == 12
    file = wanted.dataset.source.path
    assert known(wanted) == first
    file.write_text("\n".join(json.dumps({"text": text}) for text in documents[::-1]))
    assert known(wanted) == first


def test_an_item_that_says_something_else_is_another_one():
    own = {"id": "a", "document": 1, "context": "c", "choices": ["x", "y"], "gold": 0}
    name = tasks._name(own, own=True)
    assert tasks._name({**own, "document": 2}, own=True) == name
    for change in ({"context": "d"}, {"choices": ["x", "z"]}, {"gold": 1}):
        assert tasks._name({**own, **change}, own=True) != name
    # to other tasks a document may be what is asked about
    assert tasks._name(own, own=False) != tasks._name({**own, "document": 2}, own=False)


# --- against lm-eval -------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["bitgate_cloze", "bitgate_lastword"])
def test_answers_are_those_that_lm_eval_has(
    task, base, quantized, tokenizer, workload, items_of, metrics_of
):
    wanted = workload(task)
    questions = load_questions(wanted, tokenizer)
    measurement = paired_answers(quantized, base, questions, wanted)
    items = items_of(measurement)
    found = metrics_of(measurement, items)
    for module, prefix in ((quantized.module, ""), (base.module, "base_")):
        theirs = by_lm_eval(module, tokenizer, questions)
        results = theirs["results"][task]
        assert found[f"{prefix}accuracy"].value == results["acc,none"]
        assert items[f"{prefix}correct"].mean() == results["acc,none"]
        if task == "bitgate_cloze":
            assert items[f"{prefix}correct_norm"].mean() == results["acc_norm,none"]
        samples = {s["doc"]["id"]: s for s in theirs["samples"][task]}
        names = [question.doc["id"] for question in questions.items]
        for name, values in zip(names, items[f"{prefix}log_likelihoods"], strict=True):
            said = [float(answer[0][0]) for answer in samples[name]["resps"]]
            np.testing.assert_allclose([float(x) for x in values.split()], said, rtol=1e-4)
    lost = items["base_log_likelihood"] - items["log_likelihood"]
    assert found["target_nll_difference"].value == pytest.approx(lost.mean())


@pytest.mark.parametrize("shots", [0, 2])
def test_a_task_that_comes_with_lm_eval(
    shots, base, quantized, tokenizer, workload, a_task, items_of
):
    """Some of its items, with examples before each."""
    a_task()
    wanted = workload("made_up", items=8, shots=shots)
    questions = load_questions(wanted, tokenizer)
    items = items_of(paired_answers(quantized, base, questions, wanted))
    asked = [question.doc["question"] for question in questions.items]
    all_docs = [doc["question"] for doc in questions.task.eval_docs]
    samples = sorted(all_docs.index(question) for question in asked)
    assert asked != [all_docs[at] for at in samples], "an order of hashes"
    theirs = by_lm_eval(base.module, tokenizer, questions, shots, samples)
    results = theirs["results"]["made_up"]
    assert items["base_correct"].mean() == results["acc,none"]
    assert items["base_correct_norm"].mean() == results["acc_norm,none"]
    said = {
        s["doc"]["question"]: [float(answer[0][0]) for answer in s["resps"]]
        for s in theirs["samples"]["made_up"]
    }
    for question, values in zip(asked, items["base_log_likelihoods"], strict=True):
        np.testing.assert_allclose([float(x) for x in values.split()], said[question], rtol=1e-4)


def test_contexts_that_differ_and_one_continuation(base, tokenizer, workload, a_task, items_of):
    """As in winogrande: the choice stands in the context."""
    a_task(
        doc_to_text="gold",
        doc_to_choice='{{["It is " ~ choices[0] ~ ", said", "Not " ~ choices[1] ~ ", I say"]}}',
        doc_to_target="question",
    )
    wanted = workload("made_up", items=8)
    questions = load_questions(wanted, tokenizer)
    items = items_of(paired_answers(base, base, questions, wanted))
    theirs = by_lm_eval(base.module, tokenizer, questions, samples=None)
    said = {
        s["doc"]["question"]: [float(answer[0][0]) for answer in s["resps"]]
        for s in theirs["samples"]["made_up"]
    }
    for question, values in zip(questions.items, items["log_likelihoods"], strict=True):
        theirs_said = said[question.doc["question"]]
        np.testing.assert_allclose([float(x) for x in values.split()], theirs_said, rtol=1e-4)
    assert all(question.target == question.doc["gold"] for question in questions.items)


# --- scoring ---------------------------------------------------------------------------------


class Plain:
    """A model that only gives logits, as llama.cpp is asked for them."""

    def __init__(self, module, context=None):
        self.module = module
        self.context = context

    def logits(self, tokens):
        return self.module(tokens, use_cache=False).logits


REQUESTS = [
    ((5, 6, 7, 8), (9, 10)),
    ((5, 6, 7, 8), (11,)),
    ((1, 2), (3, 4, 5, 6, 7)),
    ((5, 6, 7, 8), (12, 13, 14)),
    (tuple(range(40)), (3, 2)),
]


def test_a_shared_context_is_read_once_and_changes_nothing(base):
    reads = []
    hook = base.module.register_forward_pre_hook(
        lambda module, args: reads.append(tuple(args[0].shape))
    )
    shared = score(base, REQUESTS)
    hook.remove()
    assert reads == [(3, 40), (5, 4)], "three contexts, then five continuations"
    for one, other in zip(shared, score(Plain(base.module), REQUESTS), strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)
        assert one.greedy == other.greedy


def test_likelihoods_are_sums_of_log_probabilities(base):
    import torch

    for (context, rest), answer in zip(REQUESTS, score(base, REQUESTS), strict=True):
        with torch.inference_mode():
            logits = base.module(torch.tensor([[*context, *rest]])).logits[0]
        log_probs = logits.log_softmax(-1)[len(context) - 1 : -1]
        wanted = sum(float(row[token]) for row, token in zip(log_probs, rest, strict=True))
        assert answer.log_likelihood == pytest.approx(wanted, rel=1e-5)
        assert answer.greedy == (log_probs.argmax(-1).tolist() == list(rest))


def test_what_greedy_decoding_gives_is_greedy(base):
    from bitgate.kernels.generation import generate

    context = (3, 1, 4, 1, 5)
    rest = tuple(generate(base, context, 6))
    assert [answer.greedy for answer in score(base, [(context, rest), (context, rest[::-1])])] == [
        True,
        False,
    ]


@pytest.mark.parametrize("limit", [5, 7, 30])
def test_what_is_too_long_loses_tokens_from_the_left(base, limit):
    """All tokens that are read count: the last one of a continuation is not."""
    kept = [(context[-(limit + 1 - len(rest)) :], rest) for context, rest in REQUESTS[:-1]]
    for one, other in zip(
        score(Plain(base.module, limit), REQUESTS[:-1]), score(base, kept), strict=True
    ):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)


def test_a_continuation_that_does_not_fit_at_all(base):
    with pytest.raises(
        TooLongError, match="of 5 tokens does not fit into the model's context of 4"
    ):
        score(Plain(base.module, 4), [((1,), (1, 2, 3, 4, 5))])


def test_answers_that_do_not_fit_at_all_are_said(base, tokenizer, workload, items_of, monkeypatch):
    wanted = workload(items=3)
    questions = load_questions(wanted, tokenizer)
    monkeypatch.setattr(type(base), "context", 4)
    with pytest.raises(
        MeasureError,
        match=r"task it: a continuation of \d+ tokens does not fit into the model's context of 4; "
        "choose a model with a longer one, or another `task`",
    ):
        items_of(paired_answers(base, base, questions, wanted))


def test_nothing_is_generated(base, tokenizer):
    model = language_model(partial(score, base), tokenizer)
    with pytest.raises(NotImplementedError, match="the kind rouge"):
        model.generate_until([])
    with pytest.raises(NotImplementedError, match="the kind perplexity"):
        model.loglikelihood_rolling([])


# --- the base's answers, and what is not finite ----------------------------------------------


def test_the_base_is_asked_once(base, quantized, tokenizer, workload, items_of, monkeypatch):
    wanted = workload()
    questions = load_questions(wanted, tokenizer)
    first = items_of(paired_answers(quantized, base, questions, wanted))
    module = base.module
    monkeypatch.setattr(type(base), "logits", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(base, "module", None)
    again = items_of(paired_answers(quantized, base, questions, wanted))
    for key, values in first.items():
        np.testing.assert_array_equal(values, again[key])
    other = BaseModel(module, base.execution, "other weights")
    assert other.identity != base.identity


def test_a_broken_model_is_right_of_nothing(base, llama, served, tokenizer, workload, items_of):
    broken = llama(vocab_size=257, max_position_embeddings=640)
    broken.lm_head.weight.fill_(math.nan)
    wanted = workload(items=6)
    questions = load_questions(wanted, tokenizer)
    measurement = paired_answers(served(broken), base, questions, wanted)
    items = items_of(measurement)
    assert np.isnan(items["correct"]).all()
    assert np.isfinite(items["base_correct"]).all()
    found = {metric.name: metric for metric in measurement.metrics(items, 0.98, 0.98)}
    for name in ("accuracy", "accuracy_difference", "accuracy_norm", "target_nll_difference"):
        assert not found[name].finite


def test_the_same_model_differs_in_nothing(base, tokenizer, workload, items_of, metrics_of):
    wanted = workload()
    measurement = paired_answers(base, base, load_questions(wanted, tokenizer), wanted)
    found = metrics_of(measurement, items_of(measurement))
    assert found["accuracy_difference"].value == 0
    assert found["mcnemar_p"].value == 1
    assert found["target_nll_difference"].value == 0
    assert measurement.least == measurement.most == 12


# --- what cannot be asked --------------------------------------------------------------------


def test_a_task_that_nothing_is_called(tokenizer, workload, monkeypatch):
    monkeypatch.setattr(tasks, "_index", lambda: KNOWN)
    with pytest.raises(
        SourceError, match=r"task it: task: lm-eval knows none called 'arc_eazy'; .*'arc_easy'"
    ):
        load_questions(workload("arc_eazy"), tokenizer)


def test_a_task_that_generates(tokenizer, workload, monkeypatch):
    monkeypatch.setattr(tasks, "_index", lambda: KNOWN)
    with pytest.raises(
        SourceError, match=r"gsm8k is of output type generate_until; .* there is the kind rouge"
    ):
        load_questions(workload("gsm8k"), tokenizer)


def test_a_group_of_tasks(tokenizer, workload, monkeypatch):
    monkeypatch.setattr(tasks, "_index", lambda: KNOWN)
    with pytest.raises(SourceError, match="arc is a group of tasks; name one task"):
        load_questions(workload("arc"), tokenizer)


def test_a_task_whose_data_cannot_be_reached(tokenizer, workload, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    monkeypatch.setattr(tasks, "_index", lambda: KNOWN)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        HubUnavailable,
        match=r"task it: the model hub cannot be reached to fetch the data of lm-eval's task "
        r"arc_easy, .* HF_HUB_OFFLINE",
    ):
        load_questions(workload("arc_easy"), tokenizer)


def test_a_task_with_fewer_items(tokenizer, workload, a_task):
    a_task(items=5)
    with pytest.raises(SourceError, match="made_up has 5 items, 12 are asked for; lower `items`"):
        load_questions(workload("made_up"), tokenizer)


def test_a_task_that_is_judged_by_something_else(base, tokenizer, workload, a_task, items_of):
    a_task(metric_list=[{"metric": "brier_score", "aggregation": "brier_score"}])
    wanted = workload("made_up", items=4)
    questions = load_questions(wanted, tokenizer)
    with pytest.raises(MeasureError, match="made_up: it has no `acc` to be judged by, only brier"):
        items_of(paired_answers(base, base, questions, wanted))


def test_lm_eval_prints_nothing_and_leaves_the_environment(
    tokenizer, workload, a_task, capfd, monkeypatch
):
    import os
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)  # what it does when it is imported, it does again
    monkeypatch.delenv("HF_XET_HIGH_PERFORMANCE", raising=False)
    before = dict(os.environ)
    a_task()
    load_questions(workload("made_up", items=4, shots=1), tokenizer)
    assert dict(os.environ) == before
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "it/s" not in captured.err


@pytest.mark.real
def test_the_index_knows_the_tasks_that_are_named_most():
    """Reads all YAML that comes with lm-eval: half a minute."""
    known = tasks._index()
    for name in ("arc_easy", "hellaswag", "piqa", "winogrande", "lambada_openai"):
        place, output = known[name]
        assert place.endswith(".yaml")
        assert output in tasks.SCORED
    assert known["gsm8k"][1] == "generate_until"
    assert known["mmlu"][0] is None
