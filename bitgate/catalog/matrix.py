"""The matrix: which models meet which recipes and workloads, and when."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from bitgate.catalog.cells import Case, Cell
from bitgate.catalog.entries import (
    CADENCES,
    Cadence,
    Dataset,
    MatrixEntry,
    Model,
    PhaseWorkload,
    QuantizeWorkload,
    Recipe,
    TextWorkload,
    Workload,
)
from bitgate.catalog.errors import CatalogError, nearest

T = TypeVar("T")


@dataclass
class Catalog:
    """All entries by name, and the matrix."""

    models: dict[str, Model] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    phases: dict[tuple[str, str], PhaseWorkload] = field(default_factory=dict)
    matrix: list[tuple[str, MatrixEntry]] = field(default_factory=list)

    def cases(self, cadence: Cadence = "weekly") -> list[Case]:
        """Every case due at this cadence, in matrix order; slower cadences include faster ones.

        A case that several entries name is due at the fastest cadence among them.
        """
        return [case for case in self._crossed if _rank(case.cadence) <= _rank(cadence)]

    @cached_property
    def _crossed(self) -> list[Case]:
        found: dict[str, Case] = {}
        for where, entry in self.matrix:
            for model, recipe in itertools.product(entry.models, entry.recipes):
                cell = Cell(
                    self._lookup(self.models, model, where, "models"),
                    self._lookup(self.recipes, recipe, where, "recipes"),
                )
                for workload in self._workloads(entry, where):
                    case = Case(cell, workload, entry.cadence)
                    known = found.get(case.key)
                    if known is not None and (known.cell, known.workload) != (cell, workload):
                        raise CatalogError(
                            f"{where}: {case.key} is the id of two cases: of recipe "
                            f"{known.cell.recipe.name} and of {recipe}; rename a workload or label"
                        )
                    if known is None or _rank(entry.cadence) < _rank(known.cadence):
                        found[case.key] = case
        return list(found.values())

    def _workloads(self, entry: MatrixEntry, where: str) -> Iterator[Workload]:
        if entry.quantize:
            yield QuantizeWorkload()
        for name in entry.perplexity:
            yield TextWorkload(dataset=self._lookup(self.datasets, name, where, "perplexity"))
        for kind in ("decode", "prefill"):
            named = {name: phase for (of, name), phase in self.phases.items() if of == kind}
            for name in getattr(entry, kind):
                yield self._lookup(named, name, where, kind)

    @staticmethod
    def _lookup(table: Mapping[str, T], name: str, where: str, key: str) -> T:
        try:
            return table[name]
        except KeyError:
            raise CatalogError(
                f"{where}: {key}: nothing is called {name!r}; {nearest(name, table)}"
            ) from None


def _rank(cadence: Cadence) -> int:
    return CADENCES.index(cadence)
