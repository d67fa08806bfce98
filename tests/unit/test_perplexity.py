"""Paired scores of a text, against torch's cross entropy, scipy's entropy and lm-eval."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.gates.verdict import judge
from bitgate.measure import perplexity
from bitgate.measure.base_scores import LiveScores
from bitgate.measure.perplexity import LEAST_WINDOWS, paired_scores, spans

BOS = 1

#: by stride and BOS: how windows of 16 tokens are scored
PROTOCOLS = {
    "plain": {},
    "overlapping": {"stride": 5},
    "with-bos": {"bos": BOS},
    "overlapping-with-bos": {"stride": 7, "bos": BOS},
}


@pytest.fixture(scope="module")
def base(llama):
    return llama()


@pytest.fixture(scope="module")
def quantized(base, hqq, execution):
    """At 2 bits, so that nothing agrees by itself."""
    return hqq(base, bits=2, group_size=32).serve(execution())


@pytest.fixture(scope="module")
def scored(base, quantized, served, random_text, items_of, metrics_of):
    """Text, observations and metrics by the name of a protocol."""

    def score(protocol):
        text = random_text(**PROTOCOLS[protocol])
        measurement = paired_scores(quantized, LiveScores(served(base)), text, 100)
        items = items_of(measurement)
        return text, items, metrics_of(measurement, items)

    return {protocol: score(protocol) for protocol in PROTOCOLS}


def all_logits(module, text):
    with torch.inference_mode():
        return module(text.tokens, use_cache=False).logits


# --- against independent references --------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perplexity_is_that_of_torchs_cross_entropy(scored, base, quantized, protocol):
    text, _, metrics = scored[protocol]
    labels = text.tokens.clone()
    for row, first in zip(labels, text.scored.tolist(), strict=True):
        row[:first] = -100  # context, as in transformers' documentation of perplexity
    for name, module in (("perplexity", quantized.module), ("base_perplexity", base)):
        logits = all_logits(module, text)
        mean = cross_entropy(logits[:, :-1].flatten(0, 1).double(), labels[:, 1:].flatten())
        assert metrics[name].value == pytest.approx(float(mean.exp()), rel=1e-6)
    ratio = metrics["perplexity"].value / metrics["base_perplexity"].value
    assert metrics["perplexity_ratio"].value == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_divergence_and_agreement_are_scipys(scored, base, quantized, protocol):
    text, _, metrics = scored[protocol]
    p, q = (all_logits(m, text).double().softmax(-1) for m in (base, quantized.module))
    kl = torch.from_numpy(stats.entropy(p.numpy(), q.numpy(), axis=-1))
    same = p.argmax(-1) == q.argmax(-1)
    at = [  # what predicts a scored token stands one before it
        (row, position - 1)
        for row, first in enumerate(text.scored.tolist())
        for position in range(first, text.tokens.shape[1])
    ]
    rows, columns = torch.tensor(at).T
    assert len(at) == text.scored_tokens
    assert metrics["kl_divergence"].value == pytest.approx(
        float(kl[rows, columns].mean()), rel=1e-5
    )
    agreement = float(same[rows, columns].double().mean())
    assert metrics["top1_agreement"].value == pytest.approx(agreement, rel=1e-12)
    assert 0.01 < agreement < 0.9, "the case is not trivial"


def test_every_window_is_lm_evals(scored, quantized):
    """lm-eval scores a continuation after a context; a window is both."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(256)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), eos_token="t0"
    )
    text, items, _ = scored["overlapping-with-bos"]
    model = HFLM(pretrained=quantized.module, tokenizer=tokenizer, device="cpu", batch_size=8)
    requests = [
        (("", ""), row[:first], row[first:])
        for row, first in zip(text.tokens.tolist(), text.scored.tolist(), strict=True)
    ]
    answers = model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert -np.array([loglikelihood for loglikelihood, _ in answers]) == pytest.approx(
        items["nll"], rel=1e-5
    )


def test_observations_name_window_document_and_tokens(scored):
    text, items, _ = scored["overlapping-with-bos"]
    assert items["window"].tolist() == list(range(len(text)))
    assert items["document"].tolist() == text.document.tolist()
    assert items["tokens"].tolist() == (17 - text.scored).tolist()
    assert set(items["tokens"].tolist()) == {16, 7}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_intervals_hold_the_value_and_name_their_method(scored, protocol):
    text, _, metrics = scored[protocol]
    methods = {
        "perplexity": "skew-corrected t",
        "base_perplexity": "skew-corrected t",
        "perplexity_ratio": "skew-corrected t",
        "kl_divergence": "skew-corrected t",
        "top1_agreement": "Wilson at effective n",
    }
    for name, method in methods.items():
        metric = metrics[name]
        assert metric.low < metric.value < metric.high
        assert metric.interval.method.startswith(method)
        assert (metric.interval.n, metric.interval.unit) == (len(text), "window")
        assert metric.interval.level == 0.98
    assert metrics["packed_layers"].value == metrics["packed_layers"].expected == 14


def test_windows_of_different_sizes_do_not_widen_what_all_tokens_share(scored):
    """The first window of a document scores twice the tokens of the next one, which says nothing
    of how uncertain the mean over tokens is."""
    _, items, metrics = scored["overlapping-with-bos"]
    per_token = items["nll"] / items["tokens"]
    naive = per_token.std(ddof=1) / math.sqrt(len(per_token))
    metric = metrics["perplexity"]
    half = (math.log(metric.high) - math.log(metric.low)) / 2
    assert 2 * naive < half < 3.5 * naive  # the quantile is 2.4


# --- special cases -------------------------------------------------------------------------


def test_a_model_beside_itself(base, served, random_text, items_of, metrics_of):
    measurement = paired_scores(served(base), LiveScores(served(base)), random_text(), 100)
    metrics = metrics_of(measurement, items_of(measurement))
    for name, value in (("perplexity_ratio", 1), ("kl_divergence", 0)):
        metric = metrics[name]
        assert (metric.low, metric.value, metric.high) == (value, value, value)
    assert metrics["top1_agreement"].value == metrics["top1_agreement"].high == 1


@pytest.fixture
def broken(base, served, llama, hqq, execution):
    """A quantized model in which one weight is this."""

    def make(value):
        module = hqq(llama(), solver=False)
        module.module.model.norm.weight = torch.nn.Parameter(
            base.model.norm.weight.clone(), requires_grad=False
        )
        module.module.model.norm.weight[0] = value
        return module.serve(execution())

    return make


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("expect", [None, "fail"])
def test_logits_that_are_not_finite_fail_every_bound(
    broken, base, served, random_text, items_of, metrics_of, value, expect
):
    measurement = paired_scores(broken(value), LiveScores(served(base)), random_text(), 100)
    metrics = metrics_of(measurement, items_of(measurement))
    bound = {"max": 1e9, "expect": expect, "reason": expect and "known"}
    for name in ("perplexity", "perplexity_ratio", "kl_divergence"):
        assert not metrics[name].finite
        rule = Rule(name, "gate", "thresholds.toml", Bound.model_validate(bound))
        verdict = judge(metrics[name], rule)
        assert verdict.outcome == "fail", "not even an expected failure"
        assert "is not a finite number" in verdict.text
    assert metrics["base_perplexity"].finite


def test_a_model_that_is_sure_of_the_wrong_token(base, served, random_text, items_of, metrics_of):
    """A perplexity too large for a float is infinite, not an error."""

    class Sure:
        packed_layers = expected_layers = 0

        def logits(self, tokens):
            logits = torch.zeros(*tokens.shape, 256)
            logits[..., 255] = 1e4
            return logits

    text = random_text(vocabulary=255)
    measurement = paired_scores(Sure(), LiveScores(served(base)), text, 100)
    metrics = metrics_of(measurement, items_of(measurement))
    assert metrics["perplexity"].value == math.inf
    assert 100 < metrics["kl_divergence"].value < math.inf


# --- how much is scored --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "tokens", "least"),
    [
        ((16 * 50,), 15 * 40, 40),  # the windows that hold so many scored tokens
        ((16 * 50,), 15 * 40 - 1, 40),
        ((16 * 50,), 15 * 40 + 1, 41),
        ((16 * 50,), 1, LEAST_WINDOWS),
        ((16 * 10,), 1, 10),  # never more than there are
        ((16 * 50,), 10**6, 50),
    ],
)
def test_least_windows(quantized, base, served, random_text, documents, tokens, least):
    text = random_text(documents=documents)
    assert paired_scores(quantized, LiveScores(served(base)), text, tokens).least == least


def test_passes_are_of_so_many_tokens(random_text, monkeypatch):
    text = random_text(documents=(16 * 23,))
    assert list(spans(text)) == [(0, 23)], "1024 tokens are 64 windows"
    monkeypatch.setattr(perplexity, "TOKENS_PER_BATCH", 100)
    assert list(spans(text)) == [(0, 6), (6, 12), (12, 18), (18, 23)]
    monkeypatch.setattr(perplexity, "TOKENS_PER_BATCH", 1)
    assert list(spans(text)) == [(n, n + 1) for n in range(23)]


def test_passes_do_not_change_the_scores(
    scored, base, quantized, served, random_text, items_of, monkeypatch
):
    text, items, _ = scored["overlapping"]
    monkeypatch.setattr(perplexity, "TOKENS_PER_BATCH", 100)
    measurement = paired_scores(quantized, LiveScores(served(base)), text, 100)
    batches = list(measurement.batches())
    assert len(batches) == len(list(spans(text))) > 3
    assert all(len(batch.seconds) == 1 and batch.seconds[0] > 0 for batch in batches)
    again = items_of(measurement)
    for key, column in items.items():
        assert again[key] == pytest.approx(column, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 10**6])
def test_how_many_rows_are_compared_at_a_time_changes_nothing(
    scored, base, quantized, served, items_of, monkeypatch, rows
):
    text, items, _ = scored["overlapping-with-bos"]
    monkeypatch.setattr(perplexity, "_BLOCK", 256 * rows)
    again = items_of(paired_scores(quantized, LiveScores(served(base)), text, 100))
    for key, column in items.items():
        assert (again[key] == column).all(), key


def test_comparing_leaves_the_scores_of_the_base_as_they_are(quantized, base, served, random_text):
    """Live ones are float32 as what is compared, which happens in place."""
    text = random_text()
    scores = LiveScores(served(base)).scores(text, 0, len(text))
    kept = [tensor.clone() for tensor in scores]
    measurement = paired_scores(quantized, LiveScores(served(base)), text, 100)
    measurement._compare(quantized.logits(text.tokens), scores, 0, len(text))
    assert all(torch.equal(a, b) for a, b in zip(scores, kept, strict=True))
    rows = scores.log_probs.exp().sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows)), "each row is its own"


def test_the_likeliest_token_is_torchs():
    rows = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    rows[1, 7] = rows[1, 200] = math.nan
    rows[2], rows[3], rows[4] = math.nan, -math.inf, 0.0
    assert (rows == rows.amax(-1, keepdim=True)).sum(-1).max() > 1, "there are ties"
    assert torch.equal(perplexity.likeliest(rows), rows.argmax(-1))
