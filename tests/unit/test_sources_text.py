"""Documents: clean prose out of a dump, plain text, JSON lines."""

import bz2
import hashlib
import json

import pytest

from bitgate.catalog import Dataset
from bitgate.sources import mediawiki
from bitgate.sources.errors import SourceError
from bitgate.sources.text import load_documents


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITGATE_CACHE", str(tmp_path / "cache"))


def dataset(path, format="plain", **changes) -> Dataset:  # noqa: A002
    source = {"kind": "local", "path": path}
    return Dataset.model_validate({"name": "text", "source": source, "format": format, **changes})


SENTENCE = "This sentence is long enough to be prose, and it goes on for a while so that it counts."


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        ("'''Bold''' and ''italic'' %s", "Bold and italic %s"),
        ("[[Link]] and [[target|shown]] %s", "Link and shown %s"),
        ("[[Star Trek: First Contact]] %s [[de:Link]]", "Star Trek: First Contact %s"),
        ("%s [[File:a.jpg|thumb|A [[nested]] caption]] [[Category:C]]", "%s"),
        ("%s<ref>A [[note]]</ref><ref name=x /> [http://a.b shown]", "%s shown"),
        ("%s{{citation needed|date=May}} {{convert|3|km}}", "%s 3 km"),
        ("%s ({{lang-el|x}}; {{IPA|y}}) end", "%s end"),
        ("%s H<sub>2</sub>O&nbsp;&mdash; &amp; more", "%s H2O — & more"),
        ("== Heading ==\n%s\n{| class=x\n| a table, %s\n|}\n* item: %s", "%s"),
    ],
)
def test_markup_becomes_prose(markup, prose):
    expected = prose.replace("%s", SENTENCE)
    assert mediawiki.clean(markup.replace("%s", SENTENCE)) == [expected]


def test_fragments_and_lines_with_holes_are_dropped():
    assert mediawiki.clean(f"Short.\n{SENTENCE} <math>x^2</math> follows.\n: {SENTENCE}") == []


def page(title: str, text: str, extra: str = "<ns>0</ns>") -> str:
    return f"<page><title>{title}</title>{extra}<revision><text>{text}</text></revision></page>"


def dump(tmp_path):
    article = "\n\n".join([SENTENCE] * mediawiki.MIN_PARAGRAPHS)
    pages = [
        page("Article", article),
        page("Stub", SENTENCE),
        page("Talk:Article", article, "<ns>1</ns>"),
        page("Old name", article, '<ns>0</ns><redirect title="Article" />'),
    ]
    namespace = 'xmlns="http://www.mediawiki.org/xml/export-0.10/"'
    xml = f"<mediawiki {namespace}>{''.join(pages)}</mediawiki>"
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(xml.encode()))
    return path, article


def test_a_dump_gives_its_articles_and_is_parsed_once(tmp_path, monkeypatch):
    path, article = dump(tmp_path)
    assert load_documents(dataset(path, "mediawiki")) == [article]
    monkeypatch.setattr(mediawiki, "articles", None)
    assert load_documents(dataset(path, "mediawiki")) == [article]
    assert path.exists()


def test_a_fetched_dump_is_not_kept(tmp_path):
    path, article = dump(tmp_path)
    source = {
        "kind": "file",
        "url": path.as_uri(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    entry = Dataset.model_validate({"name": "text", "source": source, "format": "mediawiki"})
    assert load_documents(entry) == [article]
    assert list((tmp_path / "cache").rglob("*.bz2")) == []


def test_a_damaged_dump(tmp_path):
    path, _ = dump(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="no MediaWiki dump, or damaged"):
        load_documents(dataset(path, "mediawiki"))


def test_plain_text_is_one_document(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Ein Satz.\n\nNoch einer: ä.", encoding="utf-8")
    assert load_documents(dataset(path)) == ["Ein Satz.\n\nNoch einer: ä."]


def test_json_lines_are_documents_or_joined_to_one(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in ("a", "", "b")))
    assert load_documents(dataset(path, "jsonl", column="body")) == ["a", "b"]
    assert load_documents(dataset(path, "jsonl", column="body", join="+")) == ["a++b"]


@pytest.mark.parametrize(
    ("content", "format", "says"),
    [
        (b"  \n", "plain", "no text at all"),
        (b"\xff\xfe", "plain", "not UTF-8"),
        (b'{"text": "a"}\n{"txt": 1}\n', "jsonl", "line 2: no JSON object with the key 'text'"),
        (b"x", "hub", "does not go with a source that is a file"),
    ],
)
def test_bad_text_names_the_dataset(tmp_path, content, format, says):  # noqa: A002
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says) as raised:
        load_documents(dataset(path, format))
    assert str(raised.value).startswith("dataset text: ")


def test_a_missing_file(tmp_path):
    with pytest.raises(SourceError, match="there is no such file"):
        load_documents(dataset(tmp_path / "none"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"text": "half \\ud83d"}',
            r"record 2: half a character, \\ud83d, at 5; correct or remove",
        ),
        ('{"text": "x", "number": %s}' % ("9" * 5000), "line 2: no JSON object .*4300 digits"),
        (
            '{"text": %s}' % ("[" * 200_000),
            "line 2: no JSON object .*Recursion",
        ),
    ],
)
def test_json_that_python_reads_in_part_is_said_to_be(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(f'{{"text": "whole \\ud83d\\ude00"}}\n{line}')
    with pytest.raises(SourceError, match=f"dataset text: .*{message}"):
        load_documents(dataset(tmp_path / "x.jsonl", "jsonl"))
