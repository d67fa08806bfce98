"""What is in memory: the base at work and the quantized cell at work."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from bitgate.catalog import (
    AccuracyWorkload,
    Case,
    Cell,
    Dataset,
    EnergyWorkload,
    Execution,
    FinetuneWorkload,
    LabelledDataset,
    MemoryWorkload,
    Model,
    PhaseWorkload,
    RougeWorkload,
    TaskWorkload,
    TextWorkload,
    TrainedSource,
)
from bitgate.kernels import KernelError
from bitgate.kernels.served import Served
from bitgate.measure.base import BaseModel
from bitgate.measure.inputs import Inputs, of_items, of_text
from bitgate.measure.tuned import Tuned
from bitgate.plugin.options import Options
from bitgate.quantize import ModelShapes, Quantized, QuantizeError, method, shapes_of
from bitgate.quantize.footprint import GIB, Need, footprint, need
from bitgate.quantize.known_shapes import shapes_without_weights
from bitgate.quantize.lock import Locks
from bitgate.sources import (
    DoesNotFit,
    EncodedItems,
    LabelledItems,
    LoadedModel,
    Part,
    Prompts,
    Questions,
    SourceError,
    Windows,
    available_memory,
    load_documents,
    load_items,
    load_model,
    load_prompts,
    load_questions,
    pick_device,
    refuse_too_few,
    refuse_unsuited,
    serving_dtype,
    shared_item,
    shared_run,
    windows,
)


class Shelf:
    """Loads a model when the first of its cases needs it, and lets go of it when the next model's
    does; likewise a quantized cell. Cases come ordered by model and cell."""

    def __init__(self, options: Options, locks: Locks | None = None) -> None:
        """`locks` tell the shapes of models before these are loaded."""
        self.options = options
        self.device = pick_device(options.device)
        self._model: tuple[Model, LoadedModel] | None = None
        self._shapes: dict[str, ModelShapes] = {}
        self._bases: dict[Execution, BaseModel] = {}
        self._cell: tuple[Cell, Quantized] | None = None
        self._served: dict[Execution, Served] = {}
        self._file: tuple[Cell, TemporaryDirectory[str]] | None = None
        self._texts: dict[tuple[str, str], Windows] = {}
        self._items: dict[tuple[str, str], LabelledItems] = {}
        self._current: Execution | None = None
        self._refused: dict[str, SourceError] = {}
        self._locks = locks or Locks(())
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
        self._refuse_what_cannot_fit(case)
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

    def _refuse_what_cannot_fit(self, case: Case) -> None:
        """Before anything of a case is loaded: what a cell's size is predicted to be has to fit
        beside its base, and the key-value cache of a phase with them; what is there already does
        not.

        Raises:
            DoesNotFit: with the arithmetic.
        """
        cell = case.cell
        if self._cell is None or self._cell[0] != cell:
            self._drop_cell()
            if self._model is not None and self._model[0] != cell.model:
                self.release()
        needed = self._need(case)
        if needed is None or not needed.parts:
            return
        available = available_memory(self.device)
        if available is not None and not needed.fits(available):
            raise DoesNotFit(
                f"not measured: {cell.id} does not fit in the memory of {self.device}: {needed}, "
                f"and {available / GIB:.2f} GiB are available. Free memory, or use another device"
            )

    def _need(self, case: Case) -> Need | None:
        """What it takes that is not there yet; None where nothing says it."""
        cell, workload = case.cell, case.workload
        phase = workload if isinstance(workload, PhaseWorkload) else None
        loaded = self._cell is not None
        if loaded and phase is None:
            return None
        dtype = str(serving_dtype(self.device)).removeprefix("torch.")
        context, batch = (phase.prompt + phase.output, phase.batch) if phase else (0, 0)
        try:
            shapes = self._shapes.get(cell.model.name)
            if shapes is None:
                shapes = shapes_without_weights(cell.model, self._locks)
            found = footprint(shapes, cell.recipe, self.device, dtype, context, batch)
        except (SourceError, QuantizeError, KernelError):
            return None  # whoever loads it, or quantizes it, says what is wrong
        if found is None:
            return None
        base = 0 if loaded or self._model is not None else found.base
        # the process in which peaks are seen lets go of its base while it quantizes
        quantized = 0 if loaded or isinstance(workload, MemoryWorkload) else found.size.memory
        return need(base, quantized, found.cache)

    def model(self, case: Case) -> LoadedModel:
        """The unquantized model, as it was loaded."""
        return self._load(case.cell.model)

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
        assert isinstance(case.workload, TextWorkload | FinetuneWorkload)
        text = self._text(case.cell.model, case.workload.dataset)
        refuse_too_few(text, case.workload.dataset)
        for seen in case.cell.recipe.calibration_texts():
            self._keep_apart(case, text, seen)
        return text

    def tuned(self, case: Case) -> Tuned:
        """The model fine-tuned as the case's workload says, on text that is not scored."""
        workload = case.workload
        assert isinstance(workload, FinetuneWorkload)
        model, text = self._load(case.cell.model), self.text(case)
        training = self._text(case.cell.model, workload.training)
        if shared_run(training, text) is not None:
            raise SourceError(
                f"finetune {workload.name}: training: dataset {workload.training.name} has text "
                f"that {workload.dataset.name} scores; train on another"
            )
        return Tuned(
            model,
            case.cell.recipe,
            lambda: self._quantized(case.cell),
            training,
            workload,
            self._execution(case),
        )

    def items(self, case: Case) -> EncodedItems:
        """The labelled items of the case's workload, as its model takes them."""
        assert isinstance(case.workload, AccuracyWorkload)
        return self._labelled(case.cell.model, case.workload.dataset)

    def inputs(self, case: Case) -> list[Inputs]:
        """What the case's workload gives the model, batch by batch."""
        workload, model = case.workload, case.cell.model
        assert isinstance(workload, (MemoryWorkload, EnergyWorkload))
        if workload.labelled is not None:
            return of_items(workload, self._labelled(model, workload.labelled))
        assert workload.dataset is not None
        return of_text(workload, self._text(model, workload.dataset))

    def _labelled(self, named: Model, dataset: LabelledDataset) -> EncodedItems:
        model = self._load(named)
        if dataset.of == "texts" and model.tokenizer is None:
            raise SourceError(f"model {named.name}: tokenizer: it has none")
        key = named.name, dataset.name
        if key not in self._items:
            with self._preparing("items"):
                exam = load_items(dataset)
                _keep_unseen(named, dataset, exam)
                refuse_unsuited(f"model {named.name}", model.module, dataset, exam)
                self._items[key] = exam
        return EncodedItems(self._items[key], model.tokenizer, dataset.longest)

    def questions(self, case: Case) -> Questions:
        """The items of the case's task; none that the quantized model was calibrated with."""
        assert isinstance(case.workload, TaskWorkload)
        tokenizer = self._load(case.cell.model).tokenizer
        if tokenizer is None:
            raise SourceError(f"model {case.cell.model.name}: tokenizer: it has none to ask with")
        seen = self._seen(case)
        with self._preparing("items"):
            return load_questions(case.workload, tokenizer, seen)

    def prompts(self, case: Case) -> Prompts:
        """The prompts for the case's documents; none that the model was calibrated with."""
        assert isinstance(case.workload, RougeWorkload)
        model, seen = self._load(case.cell.model), self._seen(case)
        with self._preparing("items"):
            return load_prompts(case.workload, model, seen)

    def _seen(self, case: Case) -> list[str]:
        """The texts that the quantized model was calibrated with, window by window."""
        model = case.cell.model
        tokenizer = self._load(model).tokenizer
        return [
            tokenizer.decode(window)
            for dataset in case.cell.recipe.calibration_texts()
            for window in self._text(model, dataset).tokens
            if tokenizer is not None
        ]

    def _keep_apart(self, case: Case, text: Windows, seen: Dataset) -> None:
        """Nothing is scored that the quantized model was calibrated with, under whatever name."""
        run = shared_run(self._text(case.cell.model, seen), text)
        if run is None:
            return
        tokenizer = self._load(case.cell.model).tokenizer
        assert isinstance(case.workload, TextWorkload | FinetuneWorkload)
        text_name = case.workload.dataset.name
        words = "" if tokenizer is None else f", such as {tokenizer.decode(run)!r}"
        raise SourceError(
            f"recipe {case.cell.recipe.name}: calibration: dataset {seen.name} has text that "
            f"{text_name} scores{words}; calibrate with another text"
        )

    def _text(self, model: Model, dataset: Dataset) -> Windows:
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
            if self._file is not None and self._file[0] == cell and self._path.exists():
                made = how.load(self._path, self.device)
            else:
                model = self._load(cell.model)
                with self._preparing("quantize"):
                    made = how.quantize(model, cell.recipe, serving_dtype(self.device))
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


def _keep_unseen(model: Model, dataset: LabelledDataset, exam: LabelledItems) -> None:
    """Nothing is classified that the model was trained with, under whatever name."""
    source = model.source
    if not isinstance(source, TrainedSource) or source.dataset == dataset:
        return  # the parts of one dataset are apart
    parts: tuple[Part, ...] = ("training", "validation")
    for part in parts:
        shared = shared_item(load_items(source.dataset, part), exam)
        if shared is not None:
            raise SourceError(
                f"labelled {dataset.name}: model {model.name} was trained with an item of it, "
                f"{shared}, by labelled {source.dataset.name}; raise the `items_limit` of that "
                "one instead, whose parts are kept apart"
            )
