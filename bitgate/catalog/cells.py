"""A cell, what it is asked to do, and how it runs. The only place that makes ids."""

from __future__ import annotations

from dataclasses import dataclass

from bitgate.catalog.entries import Cadence, Model, Recipe
from bitgate.catalog.workloads import Kind, Workload


@dataclass(frozen=True)
class Execution:
    """How a served model runs; known only when it does."""

    device: str
    dtype: str
    threads: int
    kernel: str
    compiled: bool = False

    def fields(self) -> dict[str, str | bool]:
        """What a gate can match on, beside a case's static fields."""
        return {
            "device": self.device.split(":")[0],
            "kernel": self.kernel,
            "compiled": self.compiled,
        }


@dataclass(frozen=True)
class Cell:
    """A model under a recipe."""

    model: Model
    recipe: Recipe

    @property
    def id(self) -> str:
        return f"{self.model.name}-{self.recipe.name}"


@dataclass(frozen=True)
class Case:
    """A cell with one workload: one test of `bench/`."""

    cell: Cell
    workload: Workload
    cadence: Cadence

    @property
    def kind(self) -> Kind:
        return self.workload.kind

    @property
    def id(self) -> str:
        return "-".join(part for part in (self.cell.id, self.workload.name) if part)

    @property
    def key(self) -> str:
        """Unique over all benchmarks, as ids alone are not."""
        return f"{self.kind}[{self.id}]"

    def static_fields(self) -> dict[str, str | int | None]:
        """What a gate can match on before anything runs; a field that does not apply is None."""
        return {
            "model": self.cell.model.name,
            "family": self.cell.model.family,
            "task": self.cell.model.task,
            "method": self.cell.recipe.method,
            "recipe": self.cell.recipe.name,
            "bits": self.cell.recipe.bits,
            "group_size": self.cell.recipe.group_size,
            "dataset": None,
            "phase": None,
            "batch": None,
            **self.workload.fields(),
        }


STATIC_FIELDS = (
    "model",
    "family",
    "task",
    "method",
    "recipe",
    "bits",
    "group_size",
    "dataset",
    "phase",
    "batch",
)
