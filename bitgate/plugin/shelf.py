"""What is in memory: the base at work and the quantized cell at work."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from bitgate.catalog import Case, Cell, Execution, Model, PhaseWorkload, TextWorkload
from bitgate.kernels.served import Served
from bitgate.measure.base import BaseModel
from bitgate.plugin.options import Options
from bitgate.quantize import Quantized, method, shapes_of
from bitgate.sources import LoadedModel, SourceError, Windows, load_documents, load_model, windows

if TYPE_CHECKING:
    import torch


class Shelf:
    """Loads a model when the first of its cases needs it, and lets go of it when the next model's
    does; likewise a quantized cell. Cases come ordered by model and cell."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = pick_device(options.device)
        self._model: tuple[Model, LoadedModel] | None = None
        self._bases: dict[Execution, BaseModel] = {}
        self._cell: tuple[Cell, Quantized] | None = None
        self._served: dict[Execution, Served] = {}
        self._texts: dict[tuple[str, str], Windows] = {}
        self._current: Execution | None = None
        self._refused: dict[str, SourceError] = {}
        #: seconds that getting ready has taken for the case at hand, by what was done
        self.prepared: dict[str, float] = {}

    def clear(self) -> None:
        self._drop_cell()
        self._model = None
        self._bases.clear()
        gc.collect()

    def execution(self, case: Case) -> Execution:
        """How the quantized model of this case will run; sets the threads."""
        import torch

        self.prepared = {}
        workload = case.workload
        phase = workload if isinstance(workload, PhaseWorkload) else None
        threads = (phase.threads if phase else None) or self.options.threads
        torch.set_num_threads(threads)
        module = self._load(case.cell.model).module
        recipe = case.cell.recipe
        self._current = Execution(
            device=self.device,
            dtype=str(serving_dtype(self.device)).removeprefix("torch."),
            threads=threads,
            kernel=method(recipe.method).kernel(shapes_of(module), recipe, self.device),
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
        if self._cell is None or self._cell[0] != case.cell:
            self._drop_cell()
            module = self._load(case.cell.model).module
            how = method(case.cell.recipe.method)
            with self._preparing("quantize"):
                made = how.quantize(module, case.cell.recipe, serving_dtype(self.device))
            self._cell = case.cell, made
        return self._serve(self._execution(case))

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
            self.clear()
            dtype = serving_dtype(self.device)
            try:
                with self._preparing("load"):
                    self._model = model, load_model(model, device=self.device, dtype=dtype)
            except SourceError as error:
                self._refused[model.name] = error
                raise
        return self._model[1]

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

    def _drop_cell(self) -> None:
        self._cell = None
        self._served.clear()
        gc.collect()


def pick_device(wanted: str) -> str:
    """`auto` is an accelerator if there is one."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        found = torch.cuda.device_count()
        number = int(wanted.partition(":")[2] or 0)
        if number >= found:
            raise SourceError(
                f"--device {wanted}: torch finds {found} CUDA devices here; use --device cpu"
            )
    return wanted


def serving_dtype(device: str) -> torch.dtype:
    """The dtype that the base is served in: what each kind of device does well."""
    import torch

    return torch.float32 if device == "cpu" else torch.float16
