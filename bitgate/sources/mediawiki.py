"""Clean prose from a MediaWiki XML dump: what a reader of the articles would read aloud."""

from __future__ import annotations

import bz2
import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.sources.errors import SourceError
from bitgate.sources.progress import Task

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Node, Tag, Wikilink
    from mwparserfromhell.wikicode import Wikicode

CLEANING = 1  #: raise it when the same dump gives another text
MIN_FRAGMENT = 80  #: characters; shorter ones are captions, list items and leftovers
MIN_PARAGRAPHS = 5  #: an article with fewer is a stub

_HOLE = "\0"  #: stands for something that a reader would miss; its whole line is dropped
_FORMATTING = {"b", "i", "em", "strong", "small", "big", "u", "s", "sub", "sup", "code", "tt"}
_PROSE_TAGS = _FORMATTING | {"span", "p", "div", "q", "blockquote", "abbr", "cite", "nowiki"}
_HOLE_TAGS = {"li", "dd", "dt", "math", "chem", "table"}
_MEDIA = {"file", "image", "media", "category"}
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*")
#: templates that are words of a sentence, and which of their arguments these are
_INLINE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("nowrap", "nobr", "small", "smaller", "formatnum", "val"), ("1",)),
    **dict.fromkeys(("lang", "transl"), ("2",)),
    "convert": ("1", "2"),
}
_TIDY = (
    (re.compile(r"''+"), ""),
    (re.compile(r"__[A-Z]+__"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r"\(\s*[;,:]+\s*"), "("),  # what dropped templates leave in parentheses
    (re.compile(r"\s*[;,:]+\s*\)"), ")"),
    (re.compile(r"\(\s*\)"), ""),
    (re.compile(r"\s+([,.;:)])"), r"\1"),
    (re.compile(r"\(\s+"), "("),
    (re.compile(r"([,;:])\s*(?=[,.;:])"), ""),
    (re.compile(r" {2,}"), " "),
)


def articles(dump: Path, task: Task) -> Iterator[tuple[str, str]]:
    """Title and text of each article: no redirects, no other namespaces, no stubs."""
    for title, markup in _pages(dump):
        task.advance()
        paragraphs = clean(markup)
        if len(paragraphs) >= MIN_PARAGRAPHS:
            yield title, "\n\n".join(paragraphs)


def _pages(dump: Path) -> Iterator[tuple[str, str]]:
    opener = bz2.open if dump.suffix == ".bz2" else open
    try:
        with opener(dump, "rb") as file:
            for _, page in ET.iterparse(file):
                if page.tag.rpartition("}")[2] != "page":
                    continue
                if page.find("{*}redirect") is None and page.findtext("{*}ns") == "0":
                    text = page.findtext("{*}revision/{*}text") or ""
                    yield page.findtext("{*}title") or "", text
                page.clear()  # a whole encyclopaedia would not fit
    except (ET.ParseError, EOFError, OSError) as error:
        raise SourceError(f"{dump.name} is no MediaWiki dump, or damaged: {error}") from error


def clean(markup: str) -> list[str]:
    """The paragraphs of prose in an article's markup."""
    import mwparserfromhell

    text = _text(mwparserfromhell.parse(markup))
    paragraphs = (_tidy(line) for line in text.split("\n"))
    return [paragraph for paragraph in paragraphs if _is_prose(paragraph)]


def _text(code: Wikicode) -> str:
    return "".join(_render(node) for node in code.nodes)


def _render(node: Node) -> str:
    """A node as prose; empty for headings, comments, footnotes and whatever else is not."""
    from mwparserfromhell import nodes

    match node:
        case nodes.Text():
            return html.unescape(str(node.value))
        case nodes.HTMLEntity():
            return html.unescape(str(node.normalize()))
        case nodes.Wikilink():
            return _render_link(node)
        case nodes.ExternalLink():
            return _text(node.title) if node.title is not None else ""
        case nodes.Template():
            arguments = _INLINE.get(str(node.name).strip().lower(), ())
            values = (node.get(name).value for name in arguments if node.has(name))
            return " ".join(_text(value).strip() for value in values)
        case nodes.Tag():
            return _render_tag(node)
        case _:
            return ""


def _render_tag(tag: Tag) -> str:
    name = str(tag.tag).strip().lower()
    if name in _HOLE_TAGS:
        return _HOLE
    if name == "br":
        return " "
    return _text(tag.contents) if name in _PROSE_TAGS and tag.contents is not None else ""


def _render_link(link: Wikilink) -> str:
    """What a link shows: nothing for media and categories, nor for another language's article."""
    title = str(link.title).strip()
    prefix, colon, _ = title.partition(":")
    if colon and prefix.strip().lower() in _MEDIA:
        return ""
    if link.text is not None:
        return _text(link.text)
    return "" if colon and _LANGUAGE.fullmatch(prefix) else _text(link.title).lstrip(":")


def _tidy(line: str) -> str:
    for pattern, replacement in _TIDY:
        line = pattern.sub(replacement, line)
    return line.strip()


def _is_prose(line: str) -> bool:
    leftovers = (_HOLE, "|", "{{", "}}", "[[", "]]", "<", ">")
    return len(line) >= MIN_FRAGMENT and not any(mark in line for mark in leftovers)
