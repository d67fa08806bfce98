"""What a cell is asked to do, and the matrix that asks it; a kind of workload is a class here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from bitgate.catalog.entries import Cadence, Dataset, Entry, LabelledDataset, Name, Task
from bitgate.catalog.errors import nearest

#: where the tasks lie that Bitgate brings, as lm-eval's YAML
OWN_TASKS = Path(__file__).parents[1] / "tasks"


#: items that an interval of macro-F1 takes, and batches that one of times takes
LEAST_ITEMS, LEAST_TIMES = 3, 6


def _classifies(dataset: LabelledDataset) -> tuple[Task, ...]:
    """Which task a model of such items has."""
    return ("text-classification",) if dataset.of == "texts" else ("image-classification",)


class _Workload(Entry):
    """What all kinds have, beside a `kind` and a `name`, which ends the ids of its cases."""

    #: keys for which TOML gives the name of a dataset, and the table of `datasets.toml` it is in
    named: ClassVar[dict[str, Literal["dataset", "labelled"]]] = {}

    def fields(self) -> dict[str, str | int | None]:
        """What a gate can match on."""
        return {}

    def protocol(self) -> dict[str, Any]:
        """What a run's record says of it, as JSON."""
        return self.model_dump(mode="json")


class QuantizeWorkload(_Workload):
    """Quantize the model; it needs nothing else, so it has no name in ids."""

    kind: Literal["quantize"] = "quantize"
    name: str = ""


class TextWorkload(_Workload):
    """Score a dataset's text token by token beside the base."""

    kind: Literal["perplexity"] = "perplexity"
    dataset: Dataset

    @property
    def name(self) -> str:
        return self.dataset.name

    def fields(self) -> dict[str, str | int | None]:
        return {"dataset": self.dataset.name}

    def protocol(self) -> dict[str, Any]:
        keys = {"tokens", "tokens_limit", "window", "stride", "bos", "seed"}
        told = self.dataset.model_dump(mode="json", include=keys)
        return {"kind": self.kind, "name": self.name, **told}


class AccuracyWorkload(_Workload):
    """Classify a labelled dataset's items, `batch` at a time, beside the base.

    With `timed` the base classifies each batch again in turn with the quantized model, so that
    their times are paired, of at least 6 batches; else its answers are kept in the cache. With
    `items` just so many are classified, where the dataset would give more while a gate is
    undecided.
    """

    kind: Literal["accuracy"]
    name: Name
    dataset: LabelledDataset
    batch: int = Field(32, gt=0)
    items: int | None = Field(None, gt=0)
    timed: bool = False

    named = {"dataset": "labelled"}  # noqa: RUF012

    @property
    def asked(self) -> tuple[Task, ...]:
        """Which tasks a model can have that classifies such items."""
        return _classifies(self.dataset)

    @property
    def least(self) -> int:
        """Items that are classified before anything is judged."""
        return self.items or self.dataset.items

    def fields(self) -> dict[str, str | int | None]:
        return {"dataset": self.dataset.name, "batch": self.batch}

    def protocol(self) -> dict[str, Any]:
        keys = {"items", "items_limit", "classes", "seed", "longest"}
        told = self.dataset.model_dump(mode="json", include=keys)
        own = self.model_dump(mode="json", exclude={"dataset", "items"})
        fixed = {} if self.items is None else {"items": self.items, "items_limit": self.items}
        return {**own, "dataset": self.dataset.name, **told, **fixed}

    @model_validator(mode="after")
    def _the_dataset_has_them(self) -> AccuracyWorkload:
        if self.items is not None and self.items > self.dataset.limit:
            raise ValueError(
                f"`items` must be at most what dataset {self.dataset.name} evaluates, "
                f"{self.dataset.limit}"
            )
        whose = "`items`" if self.items else f"`items` of dataset {self.dataset.name}"
        if self.least < LEAST_ITEMS:
            raise ValueError(f"{whose}: {self.least} have no interval; give at least {LEAST_ITEMS}")
        if self.timed and self.least < LEAST_TIMES * self.batch:
            raise ValueError(
                f"{whose}: {self.least} are fewer than the {LEAST_TIMES} batches of {self.batch} "
                f"that `timed` takes; give at least {LEAST_TIMES * self.batch}, or lower `batch`"
            )
        return self


class TaskWorkload(_Workload):
    """Answer an lm-eval task, item by item beside the base, `batch` items at a time.

    `task` is a name that lm-eval knows; a task of Bitgate's own draws its items from `dataset`.
    `items` are answered before anything is judged, up to `items_limit` while a gate is undecided;
    they are drawn in an order of hashes. `shots` examples stand before each.
    """

    kind: Literal["task"]
    name: Name
    task: str
    dataset: Dataset | None = None
    items: int = Field(64, gt=2)
    items_limit: int | None = Field(None, gt=0)
    shots: int = Field(0, ge=0)
    batch: int = Field(8, gt=0)
    seed: int = 0

    named = {"dataset": "dataset"}  # noqa: RUF012

    @property
    def limit(self) -> int:
        """Items that are answered at most."""
        return self.items_limit or self.items

    @model_validator(mode="after")
    def _own_tasks_need_a_text(self) -> TaskWorkload:
        own = sorted(path.stem for path in OWN_TASKS.glob("*.yaml"))
        if self.task not in own and self.task.startswith("bitgate_"):
            raise ValueError(f"`task`: nothing is called {self.task!r}; {nearest(self.task, own)}")
        if self.task in own and self.dataset is None:
            raise ValueError(f"`task` {self.task} needs a `dataset` to draw its items from")
        if self.task not in own and self.dataset is not None:
            raise ValueError(
                f"`dataset` goes with {' and '.join(own)}; {self.task} brings items of its own"
            )
        if self.task in own and self.shots:
            raise ValueError(f"`task` {self.task} has no examples; leave `shots` out")
        if self.limit < self.items:
            raise ValueError(f"`items_limit` must be at least `items`, {self.items}")
        return self

    def fields(self) -> dict[str, str | int | None]:
        return {"dataset": self.task, "batch": self.batch}

    def protocol(self) -> dict[str, Any]:
        told = self.model_dump(mode="json", exclude={"dataset"})
        return {**told, "dataset": self.dataset and self.dataset.name}


class RougeWorkload(_Workload):
    """Summarize documents of `dataset` greedily, beside the base; all outputs are equally long.

    `documents` are summarized before anything is judged, up to `documents_limit` while a gate is
    undecided; they are drawn in an order of hashes. What follows the end that a model sets itself
    is generated, so that all take as long, and not read.
    """

    kind: Literal["rouge"]
    name: Name
    dataset: Dataset
    documents: int = Field(8, gt=2)
    documents_limit: int | None = Field(None, gt=0)
    prompt: str = "Summarize the following text in one sentence.\n\n{text}"
    characters: int = Field(600, gt=0, description="of a document, cut at the end of a sentence")
    output: int = Field(40, gt=0, description="tokens of every summary")
    reference: Literal["none", "lead", "column"] = Field(
        "lead", description="what summaries are also compared with: the document's first sentence"
    )
    reference_column: str | None = Field(
        None, description="of the dataset's records, for `reference` column"
    )
    seed: int = 0

    named = {"dataset": "dataset"}  # noqa: RUF012

    @property
    def limit(self) -> int:
        """Documents that are summarized at most."""
        return self.documents_limit or self.documents

    @model_validator(mode="after")
    def _fits(self) -> RougeWorkload:
        if "{text}" not in self.prompt:
            raise ValueError("`prompt` must say where the document stands: {text}")
        if (self.reference == "column") != (self.reference_column is not None):
            raise ValueError("`reference_column` goes with `reference` column, which needs it")
        if self.limit < self.documents:
            raise ValueError(f"`documents_limit` must be at least `documents`, {self.documents}")
        return self

    def fields(self) -> dict[str, str | int | None]:
        return {"dataset": self.dataset.name}

    def protocol(self) -> dict[str, Any]:
        told = self.model_dump(mode="json", exclude={"dataset"})
        return {**told, "dataset": self.dataset.name}


class FinetuneWorkload(_Workload):
    """Fine-tune an adapter on `training`, deploy it by the cell's recipe, score `dataset`.

    `way` is how: `merge` trains on the base in NF4, merges into that base dequantized, and
    quantizes what that gives by the recipe; `adapter` trains on the base quantized by the recipe,
    and keeps the adapter beside it. `dataset` and `training` are two parts of one domain: a step
    reads `batch` windows of `training`, each of which is read once.
    """

    kind: Literal["finetune"]
    name: Name
    dataset: Dataset
    training: Dataset
    way: Literal["merge", "adapter"] = "merge"
    steps: int = Field(20, ge=8, description="fewer have no median time worth the name")
    batch: int = Field(2, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    rank: int = Field(8, gt=0)
    seed: int = 0

    named = {"dataset": "dataset", "training": "dataset"}  # noqa: RUF012

    @property
    def windows(self) -> int:
        """How many windows of `training` are read."""
        return self.steps * self.batch

    @model_validator(mode="after")
    def _enough_and_apart(self) -> FinetuneWorkload:
        training = self.training
        if too_few := training.too_few_for(self.windows):
            key, least = too_few
            raise ValueError(
                f"training: dataset {training.name}: {key}: {self.steps} steps of {self.batch} "
                f"read {self.windows} windows of {training.window} tokens: give at least {least}, "
                "or lower `steps` or `batch`"
            )
        if training.shares_text_with(self.dataset):
            raise ValueError(
                f"training: {training.name} may draw what {self.dataset.name} scores: "
                f"{training.how_to_avoid(self.dataset)}train on another"
            )
        return self

    def fields(self) -> dict[str, str | int | None]:
        return {"dataset": self.dataset.name, "batch": self.batch}

    def protocol(self) -> dict[str, Any]:
        keys = {"tokens", "tokens_limit", "window", "stride", "bos", "seed"}
        own = self.model_dump(mode="json", exclude={"dataset", "training"})
        return {
            **own,
            "dataset": self.dataset.name,
            "training": self.training.name,
            **self.dataset.model_dump(mode="json", include=keys),
            "seed": self.seed,
            "training_window": self.training.window,
        }


class PhaseWorkload(_Workload):
    """Run one phase of generation, beside the base, for its speed.

    `output` tokens are decoded after a prompt of `prompt` tokens, `batch` sequences at a time.
    Base and quantized are both compiled or both eager, so that a speed-up names its base.
    """

    kind: Literal["decode", "prefill"]
    name: Name
    batch: int = Field(1, gt=0)
    prompt: int = Field(64, gt=0)
    output: int = Field(32, ge=0)
    compiled: bool = False
    threads: int | None = Field(None, gt=0, description="threads on a CPU; default: --threads")

    @model_validator(mode="after")
    def _only_steps_are_compiled(self) -> PhaseWorkload:
        if self.compiled and self.kind != "decode":
            raise ValueError("`compiled` goes with decode only")
        if self.kind == "decode" and self.output < 1:
            raise ValueError("`output` must be at least 1 to decode")
        return self

    def fields(self) -> dict[str, str | int | None]:
        return {"phase": self.kind, "batch": self.batch}


class _EvaluationWorkload(_Workload):
    """Give the model inputs, `batch` at a time, for what that costs.

    They are the first `length` tokens of windows of `dataset`, or items of `labelled`.
    """

    name: Name
    dataset: Dataset | None = None
    labelled: LabelledDataset | None = None
    batch: int = Field(1, gt=0)
    length: int = Field(32, gt=1, description="tokens of an input, of a text")

    named = {"dataset": "dataset", "labelled": "labelled"}  # noqa: RUF012

    @model_validator(mode="after")
    def _has_inputs(self) -> _EvaluationWorkload:
        if (self.dataset is None) == (self.labelled is None):
            raise ValueError("give either `dataset`, a text, or `labelled`, items with classes")
        if self.dataset is not None and self.length > self.dataset.window:
            raise ValueError(
                f"`length`: {self.length} is more than the window of {self.dataset.name}, "
                f"{self.dataset.window}"
            )
        return self

    @property
    def inputs(self) -> Dataset | LabelledDataset:
        """What the inputs are drawn from."""
        found = self.dataset or self.labelled
        assert found is not None
        return found

    @property
    def asked(self) -> tuple[Task, ...]:
        """Which tasks a model can have that takes such inputs."""
        return ("causal-lm",) if self.labelled is None else _classifies(self.labelled)

    def fields(self) -> dict[str, str | int | None]:
        return {"dataset": self.inputs.name, "batch": self.batch}

    def protocol(self) -> dict[str, Any]:
        own = self.model_dump(mode="json", exclude={"dataset", "labelled"})
        return {**own, "dataset": self.inputs.name, "seed": self.inputs.seed}


class MemoryWorkload(_EvaluationWorkload):
    """Give the model one batch, in a process of its own, for the most memory that it takes."""

    kind: Literal["memory"]

    @property
    def count(self) -> int:
        """Inputs that are needed."""
        return self.batch


class EnergyWorkload(_EvaluationWorkload):
    """Give the model `items` inputs, a batch at a time, for the energy that it takes."""

    kind: Literal["energy"]
    items: int = Field(64, gt=0)

    @property
    def count(self) -> int:
        """Inputs that are needed."""
        return self.items

    @model_validator(mode="after")
    def _fills_batches(self) -> EnergyWorkload:
        if self.items % self.batch:
            raise ValueError(
                f"`items`: {self.items} do not fill batches of {self.batch}: give a multiple of it"
            )
        return self


Workload = (
    QuantizeWorkload
    | TextWorkload
    | AccuracyWorkload
    | TaskWorkload
    | RougeWorkload
    | FinetuneWorkload
    | PhaseWorkload
    | EnergyWorkload
    | MemoryWorkload
)
Kind = Literal[
    "quantize",
    "perplexity",
    "accuracy",
    "task",
    "rouge",
    "finetune",
    "decode",
    "prefill",
    "energy",
    "memory",
]
KINDS: tuple[Kind, ...] = get_args(Kind)  #: in the order in which a cell's cases run

#: the kinds that `matrix.toml` defines in tables, [KIND.NAME]; the others need none
TABLES: dict[Kind, Any] = {
    "accuracy": AccuracyWorkload,
    "task": TaskWorkload,
    "rouge": RougeWorkload,
    "finetune": FinetuneWorkload,
    "decode": PhaseWorkload,
    "prefill": PhaseWorkload,
    "energy": EnergyWorkload,
    "memory": MemoryWorkload,
}
#: what a model has to be asked for each kind that is not for all of them; a workload whose inputs
#: decide it says so itself, as `asked`
ASKED: dict[Kind, tuple[Task, ...]] = {
    "perplexity": ("causal-lm",),
    "task": ("causal-lm",),
    "rouge": ("causal-lm",),
    "finetune": ("causal-lm",),
    "decode": ("causal-lm",),
    "prefill": ("causal-lm",),
}


# --- the matrix ----------------------------------------------------------------------------


class MatrixEntry(Entry):
    """One `[[matrix]]` table: these models meet these recipes and workloads at this cadence."""

    cadence: Cadence
    models: list[str] = Field(min_length=1)
    recipes: list[str] = Field(min_length=1)
    quantize: bool = False
    perplexity: list[str] = Field(default=[])
    accuracy: list[str] = Field(default=[])
    task: list[str] = Field(default=[])
    rouge: list[str] = Field(default=[])
    finetune: list[str] = Field(default=[])
    decode: list[str] = Field(default=[])
    prefill: list[str] = Field(default=[])
    energy: list[str] = Field(default=[])
    memory: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _asks_something(self) -> MatrixEntry:
        if not any(getattr(self, kind) for kind in KINDS):
            raise ValueError(f"no workload: give at least one of {', '.join(KINDS)}")
        return self
