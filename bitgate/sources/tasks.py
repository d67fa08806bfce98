"""Tasks of lm-eval, Bitgate's own or those that come with it, and the items that are asked.

Only tasks that are scored by likelihoods: which of some continuations is the likeliest, or whether
the right one is what greedy decoding gives.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitgate.catalog import TaskWorkload, nearest
from bitgate.catalog.workloads import OWN_TASKS
from bitgate.sources.cache import cache_directory, once
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.hub import explaining
from bitgate.sources.imports import import_transformers
from bitgate.sources.progress import track
from bitgate.sources.quiet import untouched
from bitgate.sources.task_items import write_items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCORED = ("multiple_choice", "loglikelihood")  #: the output types of tasks that can be asked
EXAMPLES_SEED = 1234  #: lm-eval's own, of the examples that stand before an item


class Question(NamedTuple):
    """An item of a task, as lm-eval asks it."""

    name: str  #: stays the same whichever items are drawn
    doc: Any
    requests: list[Any]  #: lm-eval's instances of a context and a continuation, in its order
    target: int | None  #: which of them is right, if one is


@dataclass(frozen=True)
class Questions:
    """Items in the order in which they are drawn."""

    task: Any  #: lm-eval's object
    items: list[Question]
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return len(self.items)

    def score(self, question: Question, answers: Sequence[tuple[float, bool]]) -> dict[str, float]:
        """lm-eval's own metrics of one item: `acc`, and `acc_norm` where the task has it.

        `answers` has, for each request, the log-likelihood of its continuation in nats, and whether
        greedy decoding would give it.
        """
        found: dict[str, float] = self.task.process_results(question.doc, list(answers))
        return found


def load_questions(
    workload: TaskWorkload, tokenizer: PreTrainedTokenizerBase, seen: Sequence[str] = ()
) -> Questions:
    """The items of the workload's task; none that shares text with `seen`, where they are made of
    a dataset's documents.

    Raises:
        HubUnavailable: if the task's data lie behind a hub that cannot be reached.
        SourceError: if nothing is called so, it has too few items, or its answers are generated.
    """
    with blaming(f"task {workload.name}"):
        _import()
        if workload.dataset is not None:
            path = write_items(workload, workload.dataset, seen)
            with _silent():
                task = _own(workload.task, path)
        else:
            place = _find(workload.task)
            with _silent(), explaining(f"the data of lm-eval's task {workload.task}"):
                task = _load(place)
        _refuse(task, workload.task)
        with _silent():
            return Questions(task, _questions(task, workload), tokenizer)


def _import() -> None:
    import_transformers()
    with _silent():
        import lm_eval.tasks  # noqa: F401


def _own(name: str, items: Path) -> Any:
    import yaml
    from lm_eval.api.task import ConfigurableTask

    config = yaml.safe_load((OWN_TASKS / f"{name}.yaml").read_text("utf-8"))
    files = {"data_files": {"test": str(items)}, "cache_dir": str(cache_directory() / "datasets")}
    return ConfigurableTask(config={**config, "dataset_kwargs": files})


def _load(place: Path) -> Any:
    from lm_eval.tasks import TaskManager

    (task,) = TaskManager(include_defaults=False).load(str(place))["tasks"].values()
    return task


def _find(name: str) -> Path:
    """The YAML of a task that comes with lm-eval; what can be refused is, before its data are
    fetched."""
    from lm_eval import tasks

    known = _index()
    if name not in known:
        own = (path.stem for path in OWN_TASKS.glob("*.yaml"))
        raise SourceError(
            f"task: lm-eval knows none called {name!r}; {nearest(name, known | dict.fromkeys(own))}"
        )
    place, output = known[name]
    if place is None:
        raise SourceError(f"task: {name} is a group of tasks; name one task")
    if output is not None:
        _refuse_output(name, output)
    return Path(tasks.__file__).parent / place


def _index() -> dict[str, tuple[str | None, str | None]]:
    """Where the YAML of each task lies and its output type: reading all of them takes lm-eval half
    a minute, so it is done once for each version of it."""

    def build(folder: Path) -> None:
        from lm_eval import tasks

        root = Path(tasks.__file__).parent
        with track("index lm-eval's tasks"), _silent():
            entries = tasks.TaskManager().task_index
        found = {
            name: (
                str(entry.yaml_path.relative_to(root)) if "TASK" in entry.kind.name else None,
                (entry.cfg or {}).get("output_type"),
            )
            for name, entry in entries.items()
        }
        (folder / "tasks.json").write_text(json.dumps(found), "utf-8")

    folder = once("lm-eval-tasks", version("lm_eval"), build=build, label="lm-eval")
    found: dict[str, tuple[str | None, str | None]]
    found = json.loads((folder / "tasks.json").read_text("utf-8"))
    return found


def _refuse(task: Any, name: str) -> None:
    _refuse_output(name, str(task.OUTPUT_TYPE))
    if task.config.filter_list is not None:
        raise SourceError(f"task: {name} filters answers, which is for generated ones")


def _refuse_output(name: str, output: str) -> None:
    if output not in SCORED:
        raise SourceError(
            f"task: {name} is of output type {output}; only tasks scored by likelihoods can be "
            f"asked, {' or '.join(SCORED)}. For text that is generated there is the kind rouge"
        )


def _questions(task: Any, workload: TaskWorkload) -> list[Question]:
    docs = list(task.eval_docs)
    names = [_name(doc, own=workload.dataset is not None) for doc in docs]
    order = list(range(len(docs)))
    if workload.dataset is None:  # own items are drawn already
        order.sort(key=lambda at: hashlib.sha256(f"{workload.seed}/{names[at]}".encode()).digest())
    if len(docs) < workload.limit:
        raise SourceError(
            f"too few: {workload.task} has {len(docs)} items, {workload.limit} are asked for; "
            "lower `items` or `items_limit`"
        )
    chosen = sorted(order[: workload.limit])
    task.set_config(key="num_fewshot", value=workload.shots)
    task.set_fewshot_seed(seed=EXAMPLES_SEED)
    task.build_all_requests(samples=chosen)
    requests: dict[int, list[Any]] = {at: [] for at in chosen}
    for request in task.instances:
        requests[chosen[request.doc_id]].append(request)  # which counts those chosen
    return [
        Question(
            names[at],
            docs[at],
            sorted(requests[at], key=lambda request: request.idx),
            _target(task, docs[at]),
        )
        for at in order[: workload.limit]
    ]


def _name(doc: Any, own: bool) -> str:
    """An item is known by a hash of all that it says, by which it is found again in other runs: of
    an `own` one that is text, choices and answer, wherever in the dataset its document stands."""
    said = {key: value for key, value in doc.items() if key != "document"} if own else doc
    content = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _target(task: Any, doc: Any) -> int | None:
    if task.OUTPUT_TYPE == "loglikelihood":
        return 0
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    if isinstance(target, str):
        return choices.index(target) if target in choices else None
    return target if isinstance(target, int) and 0 <= target < len(choices) else None


@contextmanager
def _silent() -> Iterator[None]:
    """Neither bars nor warnings of lm-eval inside, nor its hands on the environment."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with untouched(), redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)
