"""What cells will take, as a table: a row for each recipe that can be made of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitgate.metric import plural
from bitgate.quantize.footprint import GIB, Footprint
from bitgate.report.comparison import escaped

MIB = 2**20
COLUMNS = (
    "recipe",
    "kernel",
    "disk MiB",
    "memory MiB",
    "rule of thumb",
    "with cache",
    "fits",
    "run",
)
TEXTS = ("recipe", "kernel", "fits")  #: columns that are no numbers
SHOWN = 3  #: recipes named of those that cannot be made


@dataclass(frozen=True)
class Setting:
    """What everything was predicted for."""

    device: str
    dtype: str
    context: int
    batch: int
    available: int  #: bytes of memory
    asked: bool = False  #: whether somebody said how much memory there is

    @property
    def memory(self) -> str:
        said = "asked for" if self.asked else f"free on {self.device}"
        return f"{self.available / GIB:.2f} GiB {said}"


@dataclass(frozen=True)
class Row:
    """A cell."""

    footprint: Footprint
    seconds: float | None  #: that all of its cases took when they last ran

    def fits(self, setting: Setting) -> str:
        """`yes`; `alone`, if it can answer, but not beside its base, as it is measured; `no`."""
        if self.footprint.measuring.fits(setting.available):
            return "yes"
        return "alone" if self.footprint.serving.fits(setting.available) else "no"

    def texts(self, setting: Setting) -> tuple[str, ...]:
        one = self.footprint
        return (
            one.recipe.name,
            one.kernel,
            f"{'' if one.exact else '~'}{_mib(one.size.disk)}",
            _mib(one.size.memory),
            "–" if one.rule_of_thumb is None else _mib(one.rule_of_thumb),
            "–" if one.cache is None else _mib(one.size.memory + one.cache),
            self.fits(setting),
            "no history" if self.seconds is None else f"{self.seconds:.0f} s",
        )


@dataclass(frozen=True)
class Prediction:
    """A model, and what becomes of it under each recipe."""

    model: str
    parameters: int
    linear: int  #: those in weights of linear layers
    base: int  #: bytes in memory
    tied: bool
    cache: int | None  #: bytes; 0 of a model that keeps nothing of tokens, None if not known
    positions: int | None = None  #: tokens that it can tell the places of, where that is limited
    rows: Sequence[Row] = ()
    #: recipes that it cannot be quantized by, and why
    refused: Sequence[tuple[str, str]] = field(default=())

    def headline(self, setting: Setting) -> str:
        """What is said above the table."""
        tied = ", the head's one with the embedding's" if self.tied else ""
        cache = f"key-value cache of {setting.batch} x {setting.context} tokens: "
        cache += "not known" if self.cache is None else f"{_mib(self.cache)} MiB"
        if self.cache == 0:
            cache = "no key-value cache"
        elif self.positions is not None and setting.context > self.positions:
            cache += f", though it has only {self.positions:,} positions"
        return (
            f"{self.model}: {self.parameters:,} parameters{tied}; {_mib(self.base)} MiB as it is, "
            f"in {setting.dtype}; {cache}"
        )

    @property
    def outside(self) -> str | None:
        """Of a model that is for the most part something else, that this stays as it is."""
        share = 1 - self.linear / self.parameters
        if share < 0.5:
            return None
        return (
            f"{100 * share:.0f} % of its parameters are in no linear layer but in fused experts, "
            "embeddings or convolutions, which most methods leave as they are"
        )

    @property
    def note(self) -> str | None:
        """Which recipes are not in the table."""
        if not self.refused:
            return None
        names = [name for name, _ in self.refused]
        more = f" and {len(names) - SHOWN} more" if names[SHOWN:] else ""
        return (
            f"{len(names)} {plural('recipe', len(names))} cannot be made of it: "
            f"{', '.join(names[:SHOWN])}{more}; --recipe NAME says why"
        )


def _mib(size: float) -> str:
    return f"{size / MIB:,.2f}"


def legend(setting: Setting, found: Sequence[Prediction]) -> Iterator[str]:
    """What the columns mean, as far as it is not plain."""
    yield (
        f"{setting.memory}. fits: yes, beside its base, as it is measured; alone, without it; each "
        "with 15 % of headroom."
    )
    yield (
        "run: what its cases took when they last ran, or as costs.toml says; those of which "
        "neither is known are not in it."
    )
    rows = [row for prediction in found for row in prediction.rows]
    if any(not row.footprint.exact for row in rows):
        yield "~: tensors only; the file's header, which is not predicted, comes on top."


def terminal(setting: Setting, found: Sequence[Prediction]) -> Iterator[Any]:
    """Tables and lines for rich."""
    from rich.table import Table
    from rich.text import Text

    styles = {"yes": "green", "alone": "yellow", "no": "red"}
    for prediction in found:
        yield Text(prediction.headline(setting), "bold")
        if prediction.outside:
            yield Text(prediction.outside)
        if prediction.rows:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for column in COLUMNS:
                justify: Any = "left" if column in TEXTS else "right"
                table.add_column(column, justify=justify, no_wrap=True)
            for row in prediction.rows:
                table.add_row(*(Text(text, styles.get(text, "")) for text in row.texts(setting)))
            yield table
        if prediction.note:
            yield Text(prediction.note)
        yield Text("")
    yield from map(Text, legend(setting, found))


def markdown(setting: Setting, found: Sequence[Prediction]) -> str:
    """For a pull request or a page."""
    lines = []
    rule = ["---" if column in TEXTS else "---:" for column in COLUMNS]
    for prediction in found:
        lines += [f"### {prediction.model}", "", prediction.headline(setting), ""]
        if prediction.outside:
            lines += [prediction.outside, ""]
        if prediction.rows:
            rows = [row.texts(setting) for row in prediction.rows]
            for texts in (COLUMNS, rule, *rows):
                lines.append("| " + " | ".join(map(escaped, texts)) + " |")
            lines.append("")
        if prediction.note:
            lines += [prediction.note, ""]
    return "\n".join([*lines, *legend(setting, found)]).rstrip()


def as_json(
    setting: Setting, found: Sequence[Prediction], unknown: Sequence[tuple[str, str]]
) -> str:
    """docs/predict.md describes it; `unknown` are models without shapes, and why."""
    content = {
        "schema": 1,
        "device": setting.device,
        "dtype": setting.dtype,
        "context": setting.context,
        "batch": setting.batch,
        "available_bytes": setting.available,
        "models": [_model_json(setting, prediction) for prediction in found],
        "unknown": [{"model": name, "why": why} for name, why in unknown],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _model_json(setting: Setting, prediction: Prediction) -> dict[str, Any]:
    return {
        "model": prediction.model,
        "parameters": prediction.parameters,
        "tied": prediction.tied,
        "base_bytes": prediction.base,
        "linear_parameters": prediction.linear,
        "cache_bytes": prediction.cache,
        "positions": prediction.positions,
        "cells": [_cell_json(setting, row) for row in prediction.rows],
        "refused": [{"recipe": name, "why": why} for name, why in prediction.refused],
    }


def _cell_json(setting: Setting, row: Row) -> dict[str, Any]:
    one = row.footprint
    return {
        "recipe": one.recipe.name,
        "kernel": one.kernel,
        "disk_bytes": one.size.disk,
        "header_bytes": one.size.header or None,
        "memory_bytes": one.size.memory,
        "rule_of_thumb_bytes": one.rule_of_thumb,
        "serving_bytes": one.serving.total,
        "measuring_bytes": one.measuring.total,
        "fits": row.fits(setting),
        "seconds": row.seconds,
    }
