"""The catalog: models, datasets, recipes and the matrix that crosses them, read from TOML.

It imports neither torch nor transformers.
"""

from bitgate.catalog.cells import STATIC_FIELDS, Case, Cell, Execution
from bitgate.catalog.entries import (
    CADENCES,
    KINDS,
    Cadence,
    Dataset,
    Entry,
    FileSource,
    HubSource,
    Kind,
    LocalSource,
    MatrixEntry,
    Model,
    Name,
    PackageSource,
    PhaseWorkload,
    QuantizeWorkload,
    Recipe,
    ShapesSource,
    Source,
    TextWorkload,
    Workload,
)
from bitgate.catalog.errors import CatalogError, nearest
from bitgate.catalog.matrix import Catalog
from bitgate.catalog.reading import load, load_entries, parse, read_toml

__all__ = [
    "CADENCES",
    "KINDS",
    "STATIC_FIELDS",
    "Cadence",
    "Case",
    "Catalog",
    "CatalogError",
    "Cell",
    "Dataset",
    "Entry",
    "Execution",
    "FileSource",
    "HubSource",
    "Kind",
    "LocalSource",
    "MatrixEntry",
    "Model",
    "Name",
    "PackageSource",
    "PhaseWorkload",
    "QuantizeWorkload",
    "Recipe",
    "ShapesSource",
    "Source",
    "TextWorkload",
    "Workload",
    "load",
    "load_entries",
    "nearest",
    "parse",
    "read_toml",
]
