"""`thresholds.toml`: what is good enough, as data. A typo in it never switches a gate off.

[[gate]]
name = "hqq w4"
match = { method = "hqq", bits = [3, 4] }     # globs, numbers, or lists of them: any of these
require.perplexity_ratio = { max = 1.28 }
require.size_mib = { within = 0.01 }          # of the predicted size
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from bitgate.catalog import (
    STATIC_FIELDS,
    Case,
    CatalogError,
    Entry,
    PhaseWorkload,
    nearest,
    parse,
    read_toml,
)
from bitgate.gates.tolerances import DEFAULTS, Tolerance, tolerances
from bitgate.metric import SPECS

Value = str | int | bool | None

#: what a gate can match on that is known only when a case runs
EXECUTION_FIELDS = ("device", "kernel", "compiled")
FIELDS = (*STATIC_FIELDS, *EXECUTION_FIELDS)


class ThresholdsError(ValueError):
    """Something in `thresholds.toml` is wrong; the message names file, gate, key and remedy."""


# --- the tables ----------------------------------------------------------------------------


def _any_of(kind: type, expected: str) -> BeforeValidator:
    """One value of exactly this type, or a list of them that is not empty, as a tuple."""

    def check(value: Any) -> tuple[Any, ...]:
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        # An exact type, because True is an int to Python and not a number of bits.
        if not values or any(type(v) is not kind for v in values):
            raise PydanticCustomError("any_of", f"takes {expected}, or a list of them")
        return values

    return BeforeValidator(check)


Globs = Annotated[tuple[str, ...], _any_of(str, "a name or glob in quotes")]
Numbers = Annotated[tuple[int, ...], _any_of(int, "a whole number")]


class Match(Entry):
    """Which cases a gate is for: all fields given must match; none given is every case.

    Names match by glob, case-sensitively; a field that a case does not have (a `dataset` when
    decoding) matches nothing.
    """

    model: Globs | None = None
    family: Globs | None = None
    task: Globs | None = None
    method: Globs | None = None
    recipe: Globs | None = None
    bits: Numbers | None = None
    group_size: Numbers | None = None
    dataset: Globs | None = None
    phase: Globs | None = None
    batch: Numbers | None = None
    device: Globs | None = None
    kernel: Globs | None = None
    compiled: StrictBool | None = None

    def given(self) -> dict[str, tuple[str | int | bool, ...]]:
        """The fields that the gate names, with the values of which any may match."""
        fields = {name: getattr(self, name) for name in FIELDS}
        return {
            name: value if isinstance(value, tuple) else (value,)
            for name, value in fields.items()
            if value is not None
        }

    def accepts(self, fields: Mapping[str, Value]) -> bool:
        """Whether a case with these fields is meant; they must include all that are given."""
        return all(fits(wanted, fields[name]) for name, wanted in self.given().items())


def fits(wanted: Iterable[str | int | bool], value: Value) -> bool:
    """Whether any of the wanted names, globs, numbers or booleans fits the value."""
    return any(
        isinstance(value, str) and fnmatchcase(value, want)
        if isinstance(want, str)
        else want == value
        for want in wanted
    )


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Bound(Entry):
    """What is required of one metric: at least `min`, at most `max`, `within` of its expectation.

    `within` is relative: 0.01 allows 1 % to either side, 0 demands equality. With
    `expect = "fail"` the cell is known to miss the bound, and `reason` says why.
    """

    min: Number | None = None
    max: Number | None = None
    within: Annotated[Number, Field(ge=0)] | None = None
    expect: Literal["fail"] | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _is_sensible(self) -> Bound:
        if self.min is None and self.max is None and self.within is None:
            raise PydanticCustomError("no_bound", "give at least one of min, max and within")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError("empty_bound", "min is above max, so nothing can pass")
        if self.expect and not (self.reason or "").strip():
            raise PydanticCustomError("no_reason", 'expect = "fail" needs a reason')
        return self

    def __str__(self) -> str:
        """`max 1.28, expected to fail: known; see docs`."""
        limits = {"min": self.min, "max": self.max, "within": self.within}
        parts = [f"{key} {written(x)}" for key, x in limits.items() if x is not None]
        if self.expect:
            parts.append(f"expected to fail: {self.reason}")
        return ", ".join(parts)


def written(x: float) -> str:
    """A number with all its digits, as someone would write it in the file."""
    return str(int(x)) if x.is_integer() and abs(x) < 1e15 else repr(x)


BOUNDS = tuple(Bound.model_fields)
TABLES = ("gate", "against")


class Gate(Entry):
    """A `[[gate]]` table: a name, which cases, and a bound for each metric it requires."""

    name: Annotated[str, Field(min_length=1)]
    match: Match = Match()
    require: Annotated[dict[str, Bound], Field(min_length=1)]


@dataclass(frozen=True)
class Thresholds:
    """The gates of one file, in its order; `file` is how messages call it."""

    file: str
    gates: tuple[Gate, ...]
    #: by metric: how much worse than an earlier run is still the same
    against: Mapping[str, Tolerance] = field(default_factory=lambda: DEFAULTS)


# --- reading -------------------------------------------------------------------------------


def load(path: Path, file: str | None = None) -> Thresholds:
    """Read `path`; messages and verdicts call it `file`, by default the path as it was given.

    Raises:
        ThresholdsError: if the file is missing or anything in it is wrong by itself. What only
            the matrix can tell is left to `check`.
    """
    file = file or str(path)
    if not path.is_file():
        raise ThresholdsError(
            f"{file} is missing: it says what is good enough; give the file with --thresholds"
        )
    try:
        tables = read_toml(path)
        against = tolerances(tables.get("against", {}), f"{file}: [against]")
        return Thresholds(file, tuple(_gates(tables, file)), against)
    except CatalogError as error:
        raise ThresholdsError(str(error)) from None


def _gates(tables: dict[str, Any], file: str) -> Iterator[Gate]:
    for key in tables:
        if key not in TABLES:
            raise ThresholdsError(f"{file}: {key}: unknown table; {nearest(key, TABLES)}")
    entries = tables.get("gate", [])
    if not isinstance(entries, list):
        raise ThresholdsError(f"{file}: gate: expected [[gate]] tables")
    seen: dict[str, int] = {}
    for number, data in enumerate(entries, 1):
        name = data.get("name") if isinstance(data, dict) else None
        where = _where(file, name if isinstance(name, str) else number)
        _refuse_unknown_names(data, where)
        gate = parse(Gate, data, where)
        if gate.name in seen:
            raise ThresholdsError(
                f"{where}: name: gates number {seen[gate.name]} and {number} share it; rename one"
            )
        seen[gate.name] = number
        yield gate


def _refuse_unknown_names(gate: Any, where: str) -> None:
    """Fields, metrics and bounds have names of their own; the remedy is one of those."""
    _refuse_unknown(gate, "match", "field", FIELDS, where)
    for metric, bound in _refuse_unknown(gate, "require", "metric", SPECS, where).items():
        _refuse_unknown({f"require.{metric}": bound}, f"require.{metric}", "key", BOUNDS, where)


def _refuse_unknown(
    table: Any, key: str, what: str, known: Collection[str], where: str
) -> dict[str, Any]:
    """The table under `key`; an empty one if it is none, which the models complain about."""
    inner = table.get(key) if isinstance(table, dict) else None
    if not isinstance(inner, dict):
        return {}
    for name in inner:
        if name not in known:
            raise ThresholdsError(f"{where}: {key}.{name}: unknown {what}; {nearest(name, known)}")
    return inner


def _where(file: str, gate: str | int) -> str:
    return f"{file}: [[gate]] " + (f'"{gate}"' if isinstance(gate, str) else f"number {gate}")


# --- against the matrix --------------------------------------------------------------------


def check(
    thresholds: Thresholds,
    cases: Iterable[Case],
    devices: Collection[str],
    kernels: Collection[str],
) -> None:
    """Refuse a gate that can match nothing.

    `cases` are those of all cadences; `devices` and `kernels` the names that are registered,
    wherever this runs. Each name and number that a gate gives must occur, and for each metric
    that it requires there must be a case that it matches and that yields this metric.

    Raises:
        ThresholdsError: naming gate, key, and what there is instead.
    """
    anywhere: tuple[frozenset[Value], frozenset[Value]] = frozenset(devices), frozenset(kernels)
    possible = [(case.kind, _possible(case, *anywhere)) for case in cases]
    for gate in thresholds.gates:
        where = _where(thresholds.file, gate.name)
        for name, wanted in gate.match.given().items():
            for want in wanted:  # one by one: each of a list must be there
                _fitting([fields for _, fields in possible], name, (want,), where)
        for metric, bound in gate.require.items():
            if bound.within is not None and not SPECS[metric].predicted:
                raise ThresholdsError(
                    f"{where}: require.{metric}.within: nothing predicts it; give min or max"
                )
            kinds = SPECS[metric].kinds
            left = [fields for kind, fields in possible if kind in kinds]
            if not left:
                raise ThresholdsError(
                    f"{where}: require.{metric}: no case of the matrix measures it; "
                    f"matrix.toml has no {' or '.join(kinds)}"
                )
            among = f" among the cases that measure {metric}"
            for name, wanted in gate.match.given().items():
                left = _fitting(left, name, wanted, where, among)
                among += f", {name} {_any(wanted)}"


def _possible(
    case: Case, devices: frozenset[Value], kernels: frozenset[Value]
) -> dict[str, frozenset[Value]]:
    """For each field of `FIELDS` the values that this case could have on some machine."""
    forced, workload = case.cell.recipe.kernel, case.workload
    compiled = isinstance(workload, PhaseWorkload) and workload.compiled
    static = {name: frozenset({value}) for name, value in case.static_fields().items()}
    return {
        **static,
        "device": devices,
        "kernel": kernels if forced == "auto" else frozenset({forced}),
        "compiled": frozenset({compiled}),
    }


def _fitting(
    cases: list[dict[str, frozenset[Value]]],
    name: str,
    wanted: tuple[str | int | bool, ...],
    where: str,
    among: str = "",
) -> list[dict[str, frozenset[Value]]]:
    """Those cases whose field `name` can have a wanted value; an error if there is none."""
    found: dict[frozenset[Value], bool] = {}  # hundreds of cases have few different values
    left = []
    for fields in cases:
        values = fields[name]
        if values not in found:
            found[values] = any(fits(wanted, value) for value in values)
        if found[values]:
            left.append(fields)
    if not left:
        there = {str(v) for fields in cases for v in fields[name] if v is not None}
        raise ThresholdsError(
            f"{where}: match.{name}: no {name} matches {_any(wanted)}{among}; "
            f"{nearest(str(wanted[0]), there)}"
        )
    return left


def _any(wanted: Iterable[str | int | bool]) -> str:
    return " or ".join(repr(want) for want in wanted)
