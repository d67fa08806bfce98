"""What is in memory: the base at work and the quantized cell at work."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from bitgate.catalog import Case, Cell, Execution, Model, PhaseWorkload, TextWorkload
from bitgate.kernels.served import Served
from bitgate.measure.base import BaseModel
from bitgate.plugin.options import Options
from bitgate.quantize import ModelShapes, Quantized, method, shapes_of
from bitgate.sources import (
    LoadedModel,
    SourceError,
    Windows,
    load_documents,
    load_model,
    pick_device,
    serving_dtype,
    windows,
)


class Shelf:
    """Loads a model when the first of its cases needs it, and lets go of it when the next model's
    does; likewise a quantized cell. Cases come ordered by model and cell."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = pick_device(options.device)
        self._model: tuple[Model, LoadedModel] | None = None
        self._shapes: dict[str, ModelShapes] = {}
        self._bases: dict[Execution, BaseModel] = {}
        self._cell: tuple[Cell, Quantized] | None = None
        self._served: dict[Execution, Served] = {}
        self._file: tuple[Cell, TemporaryDirectory[str]] | None = None
        self._texts: dict[tuple[str, str], Windows] = {}
        self._current: Execution | None = None
        self._refused: dict[str, SourceError] = {}
        #: seconds that getting ready has taken for the case at hand, by what was done
        self.prepared: dict[str, float] = {}

    def clear(self) -> None:
        self.release()
        self._drop_file()

    def release(self) -> None:
        """Let go of all models; a cell that was saved is loaded from there when it is needed."""
        import torch

        self._drop_cell()
        self._model = None
        self._bases.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def execution(self, case: Case) -> Execution:
        """How the quantized model of this case will run; sets the threads."""
        import torch

        self.prepared = {}
        workload = case.workload
        phase = workload if isinstance(workload, PhaseWorkload) else None
        threads = (phase.threads if phase else None) or self.options.threads
        torch.set_num_threads(threads)
        model, recipe = case.cell.model, case.cell.recipe
        if model.name not in self._shapes:  # known ones need no model in memory
            self._shapes[model.name] = shapes_of(self._load(model).module)
        self._current = Execution(
            device=self.device,
            dtype=str(serving_dtype(self.device)).removeprefix("torch."),
            threads=threads,
            kernel=method(recipe.method).kernel(self._shapes[model.name], recipe, self.device),
            compiled=phase is not None and phase.compiled,
        )
        return self._current

    def base(self, case: Case) -> BaseModel:
        loaded = self._load(case.cell.model)
        execution = replace(self._execution(case), kernel="torch")
        if execution not in self._bases:
            self._bases[execution] = BaseModel(loaded.module, execution, loaded.fingerprint)
        return self._bases[execution]

    def quantized(self, case: Case) -> Served:
        self._quantized(case.cell)
        return self._serve(self._execution(case))

    def saved(self, case: Case) -> Path:
        """The file of a quantized cell, written once; there until another cell is saved."""
        if self._file is None or self._file[0] != case.cell:
            self._drop_file()
            self._file = case.cell, TemporaryDirectory(prefix="bitgate-cell-")
            try:
                self._quantized(case.cell).save(self._path)
            except BaseException:
                self._drop_file()
                raise
        return self._path

    def keep(self, quantized: Quantized) -> Served:
        """Take a cell that was quantized elsewhere, and serve it."""
        self._drop_cell()
        assert self._model is not None
        assert self._current is not None
        self._cell = Cell(self._model[0], quantized.recipe), quantized
        return self._serve(self._current)

    def text(self, case: Case) -> Windows:
        assert isinstance(case.workload, TextWorkload)
        model, dataset = case.cell.model, case.workload.dataset
        key = model.name, dataset.name
        if key not in self._texts:
            tokenizer = self._load(model).tokenizer
            if tokenizer is None:
                raise SourceError(f"model {model.name}: tokenizer: it has none to read text with")
            with self._preparing("text"):
                self._texts[key] = windows(dataset, tokenizer, load_documents(dataset))
        return self._texts[key]

    def _execution(self, case: Case) -> Execution:
        return self._current or self.execution(case)

    def _load(self, model: Model) -> LoadedModel:
        if model.name in self._refused:
            raise self._refused[model.name]  # not tried again for each of its cells
        if self._model is None or self._model[0] != model:
            self.release()
            dtype = serving_dtype(self.device)
            try:
                with self._preparing("load"):
                    self._model = model, load_model(model, device=self.device, dtype=dtype)
            except SourceError as error:
                self._refused[model.name] = error
                raise
        return self._model[1]

    def _quantized(self, cell: Cell) -> Quantized:
        if self._cell is None or self._cell[0] != cell:
            self._drop_cell()
            how = method(cell.recipe.method)
            if self._file is not None and self._file[0] == cell and self._path.is_file():
                made = how.load(self._path, self.device)
            else:
                module = self._load(cell.model).module
                with self._preparing("quantize"):
                    made = how.quantize(module, cell.recipe, serving_dtype(self.device))
            self._cell = cell, made
        return self._cell[1]

    def _serve(self, execution: Execution) -> Served:
        assert self._cell is not None
        if execution not in self._served:
            with self._preparing("serve"):
                self._served[execution] = self._cell[1].serve(execution)
        return self._served[execution]

    @contextmanager
    def _preparing(self, what: str) -> Iterator[None]:
        start = monotonic()
        yield
        self.prepared[what] = self.prepared.get(what, 0.0) + monotonic() - start

    @property
    def _path(self) -> Path:
        assert self._file is not None
        return Path(self._file[1].name) / "model.safetensors"

    def _drop_cell(self) -> None:
        self._cell = None
        self._served.clear()
        gc.collect()

    def _drop_file(self) -> None:
        if self._file is not None:
            self._file[1].cleanup()
            self._file = None
