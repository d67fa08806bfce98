"""The matrix: which models meet which recipes and workloads, and when."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from bitgate.catalog.cells import Case, Cell
from bitgate.catalog.entries import CADENCES, Cadence, Dataset, LabelledDataset, Model, Recipe
from bitgate.catalog.errors import CatalogError, nearest
from bitgate.catalog.plans import Plan
from bitgate.catalog.workloads import (
    ASKED,
    TABLES,
    FinetuneWorkload,
    MatrixEntry,
    QuantizeWorkload,
    TextWorkload,
    Workload,
)
from bitgate.statistics import LEAST_SKEWED

T = TypeVar("T")


@dataclass
class Catalog:
    """All entries by name, and the matrix."""

    models: dict[str, Model] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    labelled: dict[str, LabelledDataset] = field(default_factory=dict)
    #: those that have tables of their own, by kind and name
    workloads: dict[tuple[str, str], Workload] = field(default_factory=dict)
    matrix: list[tuple[str, MatrixEntry]] = field(default_factory=list)
    #: where each recipe is written, for messages
    recipe_places: dict[str, str] = field(default_factory=dict)

    def cases(self, cadence: Cadence = "weekly") -> list[Case]:
        """Every case due at this cadence, in matrix order; slower cadences include faster ones.

        A case that several entries name is due at the fastest cadence among them.
        """
        return [case for case in self._crossed if _rank(case.cadence) <= _rank(cadence)]

    def cells(self, cadence: Cadence = "weekly") -> Iterator[tuple[str, Cell]]:
        """Every cell due at this cadence, once, and the first entry of the matrix that names it."""
        seen: set[tuple[str, str]] = set()
        for where, entry in self.matrix:
            if _rank(entry.cadence) > _rank(cadence):
                continue
            for names in itertools.product(entry.models, entry.recipes):
                if names not in seen:
                    seen.add(names)
                    yield where, Cell(self.models[names[0]], self.recipes[names[1]])

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
                    self._refuse_another_task(case, where)
                    self._refuse_seen(case, where)
                    known = found.get(case.key)
                    if known is not None and (known.cell, known.workload) != (cell, workload):
                        raise CatalogError(
                            f"{where}: {case.key} is the id of two cases: of recipe "
                            f"{known.cell.recipe.name} and of {recipe}; rename a workload or label"
                        )
                    if known is None or _rank(entry.cadence) < _rank(known.cadence):
                        found[case.key] = case
        return list(found.values())

    @staticmethod
    def _refuse_another_task(case: Case, where: str) -> None:
        """A model that predicts tokens names no class, and the other way round."""
        model = case.cell.model
        asked = getattr(case.workload, "asked", ASKED.get(case.kind))
        if asked is not None and model.task not in asked:
            raise CatalogError(
                f"{where}: {case.kind}: it is for models of task {' or '.join(asked)}, and "
                f"{model.name} is of task {model.task}"
            )

    @staticmethod
    def _refuse_seen(case: Case, where: str) -> None:
        """A model is never scored on a text that it was calibrated with."""
        if not isinstance(case.workload, TextWorkload | FinetuneWorkload):
            return
        for seen in case.cell.recipe.calibration_texts():
            if seen.shares_text_with(case.workload.dataset):
                raise CatalogError(
                    f"{where}: recipe {case.cell.recipe.name} is calibrated with {seen.name}, "
                    f"which may draw what {case.workload.dataset.name} scores: "
                    f"{seen.how_to_avoid(case.workload.dataset)}calibrate with another"
                )

    def dataset(self, name: str, where: str, key: str) -> Dataset:
        """The dataset that `key` of an entry names."""
        return self._lookup(self.datasets, name, where, key)

    def model(self, name: str, where: str, key: str) -> Model:
        """The model that `key` of an entry names."""
        return self._lookup(self.models, name, where, key)

    def labelled_dataset(self, name: str, where: str, key: str) -> LabelledDataset:
        """The labelled dataset that `key` of an entry names."""
        return self._lookup(self.labelled, name, where, key)

    def plan(self, name: str, where: str, key: str) -> Plan:
        """The plan that `key` of an entry names."""
        return self._lookup(self.plans, name, where, key)

    def _workloads(self, entry: MatrixEntry, where: str) -> Iterator[Workload]:
        if entry.quantize:
            yield QuantizeWorkload()
        for name in entry.perplexity:
            dataset = self._lookup(self.datasets, name, where, "perplexity")
            if too_few := dataset.too_few_for(LEAST_SKEWED):
                key, least = too_few
                raise CatalogError(
                    f"{where}: perplexity: dataset {name}: {key}: {getattr(dataset, key)} are "
                    f"scored in fewer than the {LEAST_SKEWED} windows of {dataset.window} that an "
                    f"interval takes; give at least {least}"
                )
            yield TextWorkload(dataset=dataset)
        for kind in TABLES:
            named = {name: table for (of, name), table in self.workloads.items() if of == kind}
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
