"""What the base answers, computed once and kept on disk, some requests at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from bitgate.kernels.continuations import Answer, Request, score
from bitgate.kernels.generation import generate
from bitgate.kernels.served import Served
from bitgate.sources import once, track

FILE = "answers.json"
FORMAT = 1


def base_answers(
    base: Served, identity: dict[str, str], requests: Sequence[Request]
) -> list[Answer]:
    """To each request; `identity` says what the base is and how it is executed."""

    def build(folder: Path) -> None:
        with track(f"asking the base, {len(requests)} continuations"):
            found = score(base, requests)
        (folder / FILE).write_text(json.dumps(found), "utf-8")

    asked = json.dumps([[list(context), list(rest)] for context, rest in requests])
    folder = once("base-answers", *_key(identity, asked), build=build, label="base's answers")
    return [Answer(*one) for one in json.loads((folder / FILE).read_text("utf-8"))]


def base_output(
    base: Served, identity: dict[str, str], prompt: Sequence[int], output: int
) -> list[int]:
    """The tokens that the base generates greedily after a prompt."""

    def build(folder: Path) -> None:
        with track(f"generating with the base, {output} tokens"):
            found = generate(base, prompt, output)
        (folder / FILE).write_text(json.dumps(found), "utf-8")

    asked = json.dumps([list(prompt), output])
    folder = once("base-outputs", *_key(identity, asked), build=build, label="base's outputs")
    found: list[int] = json.loads((folder / FILE).read_text("utf-8"))
    return found


def _key(identity: dict[str, str], asked: str) -> list[str | int]:
    known = [f"{key}={value}" for key, value in sorted(identity.items())]
    return [*known, FORMAT, hashlib.sha256(asked.encode()).hexdigest()]
