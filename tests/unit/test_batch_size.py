"""What a classifier of texts says does not depend on how many it reads at a time."""

import pytest
import torch

from bitgate.sources import EncodedItems, SourceError

SIZES = (1, 3, 32)


def logits(served, items, size, change=lambda inputs: inputs):
    """Of all items, `size` at a time."""
    starts = range(0, len(items), size)
    found = [
        served.classify(change(items.inputs(start, min(start + size, len(items)))))
        for start in starts
    ]
    return torch.cat(found)


@pytest.fixture(scope="module", params=["base", "hqq", "hqq on int4"])
def model(request, classifier, served, hqq, execution):
    """Unquantized; quantized; quantized on the kernel that computes in bfloat16."""
    if request.param == "base":
        return served(classifier())
    kernel = "cpu-int4" if "int4" in request.param else "dequantize"
    return hqq(classifier()).serve(execution(kernel))


def test_logits_agree_and_classes_are_the_same(model, labelled_texts):
    items = labelled_texts(64)
    lengths = [len(items.tokenizer(text)["input_ids"]) for text in items.items.inputs]
    assert max(lengths) > 3 * min(lengths)  # much is padded
    alone, few, many = (logits(model, items, size) for size in SIZES)
    # of the kernel that rounds to bfloat16, by the order of its sums
    close = {"rtol": 0.02, "atol": 0.02} if model.execution.kernel == "cpu-int4" else {}
    torch.testing.assert_close(few, alone, **close)
    torch.testing.assert_close(many, alone, **close)
    sure = alone.topk(2).values.diff().abs().squeeze(-1) > 0.05  # all but near ties
    assert sure.float().mean() > 0.9
    for found in (few, many):
        assert torch.equal(found.argmax(-1)[sure], alone.argmax(-1)[sure])
    assert len(set(alone.argmax(-1).tolist())) == 3


def test_classes_are_exactly_the_same_in_float32(classifier, served, labelled_texts):
    base, items = served(classifier()), labelled_texts(200, seed=1)
    alone, few, many = (logits(base, items, size).argmax(-1) for size in SIZES)
    assert torch.equal(alone, few)
    assert torch.equal(alone, many)


def padded_left(inputs, keep_mask):
    """The same texts with their padding in front, where only a mask hides it from the text."""
    rows = list(zip(inputs["input_ids"], inputs["attention_mask"], strict=True))
    counts = [int(mask.sum()) for _, mask in rows]
    turned = {
        "input_ids": torch.stack(
            [r.roll(len(r) - n) for (r, _), n in zip(rows, counts, strict=True)]
        ),
        "attention_mask": torch.stack(
            [m.roll(len(m) - n) for (_, m), n in zip(rows, counts, strict=True)]
        ),
    }
    if not keep_mask:
        turned["attention_mask"] = torch.ones_like(turned["attention_mask"])
    positions = (turned["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    return turned | {"position_ids": positions}


def test_without_its_mask_padding_is_seen(classifier, served, labelled_texts):
    """So the tests above can fail: what makes them pass is the mask, and the place of the last
    token, which the model finds by its `pad_token_id`."""
    base, items = served(classifier()), labelled_texts(64)
    alone = logits(base, items, 1)
    masked = logits(base, items, 32, lambda inputs: padded_left(inputs, keep_mask=True))
    torch.testing.assert_close(masked, alone)
    seen = logits(base, items, 32, lambda inputs: padded_left(inputs, keep_mask=False))
    assert (seen - alone).abs().max() > 0.1
    assert not torch.equal(seen.argmax(-1), alone.argmax(-1))
    # another token as padding than the model's: its last token is one of the padding's
    other = served(classifier(pad_token_id=5))
    assert (logits(other, items, 32) - alone).abs().max() > 0.1


def test_a_tokenizer_without_padding_reads_one_text_at_a_time(labelled_texts, by_word):
    items = labelled_texts(4)
    bare = EncodedItems(items.items, by_word(sep_token="<eos>"), 64)
    assert bare.inputs(0, 1)["input_ids"].shape[0] == 1
    with pytest.raises(SourceError, match=r"no padding token.*give batch = 1"):
        bare.inputs(0, 2)


def test_a_text_that_is_too_long_is_cut(labelled_texts):
    items = labelled_texts(32, longest=8)
    inputs = items.inputs(0, 32)
    assert inputs["input_ids"].shape == (32, 8)
    assert items.fingerprint != labelled_texts(32, longest=9).fingerprint
