"""`energy.toml`: where the electricity comes from, and what no instrument of this machine tells.

[energy]
country = "FRA"        # ISO 3166-1 alpha-3; default: the world's average
grams_per_kwh = 56     # instead of the country's average, g CO2eq
cpu_watts = 65         # the CPU under full load, all cores, where no counter can be read
ram_watts = 10         # the memory
pue = 1.2              # of the data centre; multiplies every energy

Machines differ where the checkout does not, so a variable of the environment overrides each key:
BITGATE_ENERGY_COUNTRY, BITGATE_ENERGY_CPU_WATTS, ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from bitgate.catalog.entries import Entry
from bitgate.catalog.errors import CatalogError, nearest
from bitgate.catalog.reading import parse, read_toml

FILE = "energy.toml"
PREFIX = "BITGATE_ENERGY_"
MIXES = "data/private_infra/global_energy_mix.json"  #: in codecarbon

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EnergySettings(Entry):
    """The `[energy]` table; without it, the world's average and the constants of codecarbon."""

    country: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    grams_per_kwh: Positive | None = None
    cpu_watts: Positive | None = None
    ram_watts: Positive | None = None
    pue: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0

    @field_validator("country")
    @classmethod
    def _is_known(cls, country: str | None) -> str | None:
        if country is not None and country not in (known := _countries()):
            raise ValueError(
                f"codecarbon knows no such country; {nearest(country, known)}; or leave it out and "
                "give grams_per_kwh"
            )
        return country


def _countries() -> list[str]:
    """That codecarbon knows, from its file; importing it takes a second, and reads far more."""
    found = find_spec("codecarbon")
    assert found is not None
    assert found.origin is not None
    mixes: dict[str, Any] = json.loads((Path(found.origin).parent / MIXES).read_text("utf-8"))
    return list(mixes)


def read_energy(folder: Path, environment: Mapping[str, str] = os.environ) -> EnergySettings:
    """Of a project's `energy.toml`, if it has one, and of the environment.

    Raises:
        CatalogError: naming the file or the variable, the key and what it takes.
    """
    path = folder / FILE
    tables = read_toml(path)
    for key in tables:
        if key != "energy":
            raise CatalogError(f"{path}: {key}: unknown table; {nearest(key, ['energy'])}")
    table = tables.get("energy", {})
    if not isinstance(table, dict):
        raise CatalogError(f"{path}: energy: expected a table")
    settings = parse(EnergySettings, table, f"{path}: [energy]")
    known = list(EnergySettings.model_fields)
    given: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        key = variable.removeprefix(PREFIX).lower()
        if key not in known:
            names = [f"{PREFIX}{name.upper()}" for name in known]
            raise CatalogError(f"{variable}: unknown variable; {nearest(variable, names)}")
        value: Any = text if key == "country" else _number(text)
        given[key] = getattr(parse(EnergySettings, {key: value}, variable), key)
    return settings.model_copy(update=given)


def _number(text: str) -> float | str:
    """What is none is refused by its type, with the text."""
    try:
        return float(text)
    except ValueError:
        return text
