"""Formats of labelled texts: what they give, and what they say of bad files."""

import io
import json
import sys
import tarfile
import zipfile

import pytest

from bitgate.catalog import LabelledDataset
from bitgate.sources import SourceError, labelled_texts
from bitgate.sources.labelled_texts import FORMATS

CLASSES = ["negative", "neutral", "positive"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def read(tmp_path):
    """Texts and labels of a file with this content."""

    def run(form, content, name="file.txt", classes=CLASSES, of="texts", source=None, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        fields = {
            "name": "some",
            "of": of,
            "source": source or {"kind": "local", "path": str(path)},
            "format": form,
            "classes": classes,
            "options": options,
        }
        dataset = LabelledDataset.model_validate(fields)
        return FORMATS[form](dataset, dataset.source, "labelled some")

    return run


SCORED = "1\t2.5\tgreat &amp; good\r\n2\t-0.5\tbad\r\n\r\n3\t0.49\tso\tso\r\n4\t0.5\t fine \r\n"


def test_scores_become_classes_at_their_limits(read):
    texts, labels = read("scored-tsv", SCORED)
    assert texts == ["great & good", "bad", "so\tso", "fine"]
    assert labels == [2, 0, 1, 2]
    assert read("scored-tsv", SCORED, low=-3, high=2.6)[1] == [1, 1, 1, 1]
    turned = "a\t1\tx\nb\t-1\ty"
    assert read("scored-tsv", turned, text=0)[0] == ["a", "b"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_of_an_archive(read, kind):
    files = {
        "top/a_truth.txt": SCORED,
        "top/b_truth.txt": "1\t0\tso so",
        "top/more/a_truth.txt": "",
    }
    packed = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content.encode()))
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    data = packed.getvalue()
    assert read("scored-tsv", data, member="b_truth.txt") == (["so so"], [1])
    assert read("scored-tsv", data, member="top/a_truth.txt")[1] == [2, 0, 1, 2]
    with pytest.raises(SourceError, match=r"no member 'c_truth.txt'; the nearest are .*b_truth"):
        read("scored-tsv", data, member="c_truth.txt")
    with pytest.raises(SourceError, match=r"several 'a_truth.txt': top/a_truth.txt, top/more/"):
        read("scored-tsv", data, member="a_truth.txt")
    with pytest.raises(SourceError, match=r"not UTF-8 text.*options\.member|row 1"):
        read("scored-tsv", data)
    with pytest.raises(SourceError, match=r"file\.txt is (truncated or damaged|no archive)"):
        read("scored-tsv", data[: len(data) // 2], member="b_truth.txt")


JSONL = [
    {"text": "good", "label": "positive"},
    {"text": "a line\nand a separator\u2028", "label": 0},
    {"text": "so &lt;so&gt;", "label": "1"},
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in JSONL)


def test_json_lines(read):
    texts, labels = read("jsonl", LINES + "\n\n")
    assert texts == ["good", "a line\nand a separator", "so <so>"]
    assert labels == [2, 0, 1]
    named = LINES.replace('"text"', '"tweet"').replace('"label"', '"mood"')
    assert read("jsonl", named, text="tweet", label="mood")[1] == labels
    assert read("jsonl", LINES, classes=[])[1] is None


def test_a_table(read):
    rows = 'label,text\npositive,"good, very\ngood"\n0,bad\n'
    assert read("csv", "\ufeff" + rows) == (["good, very\ngood", "bad"], [2, 0])
    tabbed = "mood\ttweet\n1\tso so\n"
    assert read("csv", tabbed, text="tweet", label="mood", separator="\t") == (["so so"], [1])
    assert read("csv", "text,label,,\nx,0,,\n") == (["x"], [0])  # as spreadsheets end some


def test_a_hub(read, monkeypatch):
    """TweetEval's columns, as the library gives them."""
    asked = []

    def fetch_records(source, columns, label):
        asked.append((source.subset, source.split, columns))
        return {"text": ["good", "bad"], "label": [2, 0]}

    monkeypatch.setattr(
        sys.modules["bitgate.sources.labelled_texts"], "fetch_records", fetch_records
    )
    source = {"kind": "hub", "repo": "some/tweets", "revision": "a" * 40, "split": "test"}
    assert read("hub", "", source={**source, "subset": "sentiment"}) == (["good", "bad"], [2, 0])
    assert asked == [("sentiment", "test", ["text", "label"])]
    assert read("hub", "", source=source, classes=[])[1] is None
    with pytest.raises(SourceError, match="kind 'local' does not go with format 'hub'"):
        read("hub", "")
    with pytest.raises(SourceError, match="kind 'hub' does not go with a format of files"):
        read("csv", "", source=source)


@pytest.mark.parametrize(
    ("form", "content", "options", "message"),
    [
        ("scored-tsv", "1\t0.5", {}, "row 1: 2 columns, where text is column 2"),
        ("scored-tsv", "1\tx\ty", {}, "row 1: its score 'x' is no number"),
        ("scored-tsv", "1\tnan\ty", {}, "row 1: its score 'nan' is no number"),
        ("scored-tsv", "1\t1\ta\n2\t1\t &#32; ", {}, "row 2: its text is empty"),
        ("scored-tsv", SCORED, {"low": 1, "high": 0}, "low 1 must be below high 0"),
        ("scored-tsv", SCORED, {"text": -1}, "options: text: columns are counted from 0"),
        ("scored-tsv", SCORED, {"text": "2"}, "options: text: expected int, got '2'"),
        ("scored-tsv", SCORED, {"members": "a"}, "members: unknown key; did you mean 'member'?"),
        ("scored-tsv", SCORED, {"classes": ["a", "b"]}, "classes: scored-tsv needs three"),
        ("scored-tsv", SCORED, {"of": "images"}, "of: format 'scored-tsv' holds texts"),
        ("scored-tsv", SCORED, {"member": "a"}, "file.txt is no archive, or damaged"),
        ("scored-tsv", b"\xff\xfe", {}, "file.txt is not UTF-8 text"),
        ("jsonl", LINES + '\n{"text": ', {}, "row 4: no JSON, the file may be damaged"),
        ("jsonl", "[1]", {}, "row 1: expected a JSON object"),
        ("jsonl", '{"tweet": "x"}', {}, "row 1: nothing in 'text'; it has tweet"),
        ("jsonl", '{"text": 3, "label": 0}', {}, "row 1: its text is no text but 3"),
        ("jsonl", '{"text": "", "label": 0}', {}, "row 1: its text is empty"),
        (
            "jsonl",
            '{"text": "x", "label": "happy"}',
            {},
            "'happy' is none of the `classes` negative, neutral, positive, nor a number from 0",
        ),
        ("jsonl", '{"text": "x", "label": 3}', {}, "row 1: label 3 is none of the `classes`"),
        ("jsonl", '{"text": "x", "label": true}', {}, "row 1: label True is none"),
        ("csv", "text,label\nx,-1\n", {}, "row 2: label '-1' is none"),
        ("csv", "text,label\nx\n", {}, "row 2: nothing in 'label'; it has text, label"),
        ("csv", 'text,label\n"x,0\n', {}, "is no table of this kind, or is damaged"),
        ("csv", "text,label\nx,0\n", {"separator": ""}, "is no table of this kind"),
        (
            "csv",
            "label,text\n0,good\n1,so, so\n",
            {},
            "row 3: more columns than the header's 2; quote the text",
        ),
        ("csv", "text,label,text\na,0,b\n", {}, "row 1: the header names 'text' more than once"),
        ("jsonl", '{"text": "x", "label": %s}' % ("9" * 5000), {}, "row 1: no JSON"),
        ("jsonl", '{"text": %s1}' % ("[" * 200_000), {}, "row 1: no JSON"),
        (
            "jsonl",
            '{"text": "half \\ud83d", "label": 0}',
            {},
            "row 1: its text has half a character, \\ud83d, at 5",
        ),
    ],
)
def test_what_is_refused(read, form, content, options, message):
    with pytest.raises(SourceError) as raised:
        read(form, content, **options)
    assert message in str(raised.value)


def test_a_label_means_the_same_as_text_and_as_a_number():
    digits, turned = ("0", "1", "2"), ("0", "4", "1")
    for given in ("2", " 2", 2, "02"):
        assert labelled_texts._class(given, digits, 1) == 2
    for given in ("4", 4):
        assert labelled_texts._class(given, turned, 1) == 1
    for given in ("1", 1):
        with pytest.raises(SourceError, match=r"row 1: label .*1.* is the name of one of the"):
            labelled_texts._class(given, turned, 1)


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("jsonl", '{"text": "x", "label": "' + 5000 * "1" + '"}', "row 1: label '11"),
        ("csv", "text,label\nx," + 5000 * "1" + "\n", "row 2: label '11"),
    ],
)
def test_a_label_of_thousands_of_digits(read, form, content, message):
    with pytest.raises(SourceError) as raised:
        read(form, content)
    assert message in str(raised.value)
    assert len(str(raised.value)) < 400
