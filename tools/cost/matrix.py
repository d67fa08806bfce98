"""What the default matrix costs as a whole: beside what cannot be avoided (quantizing, forward
passes, timed steps), with two workers instead of one process, and beside the same cells done as it
is mostly done today, with one process of lm-eval per cell and a timing script (as_today.py).

Everything is warm: downloads, converted models and the base's scores are there, and today's way is
not charged for scoring the base.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).parents[2]
QUALITY = ("quantize", "perplexity")
LIMITS = {"unavoidable": 1.25, "workers": 0.6, "today": 0.5}


@dataclass
class Run:
    """One invocation of `pytest bench`: its wall time, its records, and its items by case."""

    wall: float
    records: dict[str, dict[str, Any]]
    rounds: dict[str, float]
    base: dict[str, float]

    @property
    def unavoidable(self) -> float:
        """Seconds of quantizing, of forward passes and of timed steps on both sides."""
        quantized = sum(r["prepared"].get("quantize", 0.0) for r in self.records.values())
        return sum(self.rounds.values()) + sum(self.base.values()) + quantized

    def seconds(self, *, quality: bool) -> float:
        """Of the cases that are about quality, or of the others."""
        return sum(
            record["seconds"]
            for record in self.records.values()
            if (record["workload"]["kind"] in QUALITY) == quality
        )


def report(today: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    with tempfile.TemporaryDirectory(prefix="bitgate-cost-") as name:
        folder = Path(name)
        _say("warming up: downloads, conversion, the scores of the base")
        _bench(folder, "bench/test_perplexity.py", "-k", "rtn-dequantize")
        _say("the whole matrix in one process")
        one = _bench(folder, "bench")
        _say("the whole matrix, two workers")
        two = _bench(folder, "bench", "-n", "2")
        _say("the quality cells alone, two workers")
        quality = _bench(folder, "bench/test_quantize.py", "bench/test_perplexity.py", "-n", "2")
        theirs = _today(folder, one) if today else None

    alone = one.wall - one.seconds(quality=False)
    table = Table(title="the default matrix", box=None, title_justify="left")
    for column in ("what", "s", "ratio", "limit", "of"):
        table.add_column(column, justify="left" if column in ("what", "of") else "right")
    over = False

    def row(what: str, seconds: float, to: float = 0.0, limit: str = "", of: str = "") -> None:
        nonlocal over
        ratio = seconds / to if to else 0.0
        over |= bool(limit) and ratio > LIMITS[limit]
        bound = f"{LIMITS[limit]:g}" if limit else ""
        table.add_row(what, f"{seconds:.0f}", f"{ratio:.2f}" if to else "", bound, of)

    row("cannot be avoided, one process", one.unavoidable)
    row("-n 0", one.wall, one.unavoidable, "unavoidable", "what cannot be avoided")
    row("-n 2", two.wall, one.wall, "", "-n 0")
    row("quality cells, -n 0", alone)
    row("quality cells, -n 2", quality.wall, alone, "workers", "-n 0")
    if theirs is not None:
        row("as today, one process per cell", theirs)
        row("-n 0", one.wall, theirs, "today", "as today")
    Console(width=100).print(table)
    waited = sum(record["waited"] for record in two.records.values())
    print(f"at -n 2 cases waited {waited:.0f} s in all for others to be timed")
    return 1 if over else 0


def _bench(folder: Path, *arguments: str) -> Run:
    """Run some benchmarks, with storage and journal in `folder`, and read what they left."""
    from bitgate.history.runs import records_of

    saved = folder / "run.json"
    started = monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *arguments, "--benchmark-quiet"),
            *(f"--benchmark-json={saved}", f"--benchmark-storage=file://{folder / 'storage'}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    wall = monotonic() - started
    if done.returncode not in (0, 1):
        sys.exit(f"{done.stdout}\npytest ended with exit status {done.returncode}")
    benchmarks = json.loads(saved.read_text("utf-8"))["benchmarks"]
    rounds = {b["extra_info"]["bitgate"]["case"]: sum(b["stats"]["data"]) for b in benchmarks}
    return Run(wall, records_of(saved), rounds, _base_seconds(saved.with_suffix(".parquet")))


def _base_seconds(items: Path) -> dict[str, float]:
    """What the base's side of timed steps took, by case."""
    from pyarrow import parquet

    table = parquet.read_table(items)
    if "base_seconds" not in table.column_names:
        return {}
    frame = table.select(["case", "base_seconds"]).to_pandas()
    sums: dict[str, float] = frame.groupby("case", observed=True)["base_seconds"].sum().to_dict()
    return sums


def _today(folder: Path, run: Run) -> float:
    """Seconds of one process per cell of `run` for its quality, and one for its speed."""
    models, texts = _prepare(folder, run)
    jobs: list[tuple[str, ...]] = []
    for key, record in run.records.items():
        recipe, workload = record["recipe"], record["workload"]
        model = str(models[record["model"]])
        how = [f"--bits={recipe['bits']}", f"--group-size={recipe['group_size']}"]
        how += ["--no-solver"] if recipe.get("solver") is False else []
        if workload["kind"] == "perplexity":
            jobs.append(("quality", model, str(texts[workload["name"]]), *how))
        elif workload["kind"] == "decode":  # as many steps as were timed here
            timed = run.rounds[key] * record["metrics"]["tokens_per_second"]["value"]
            steps = f"--steps={max(1, round(timed))}"
            jobs.append(("speed", model, *how, f"--prompt={workload['prompt']}", steps))
        elif workload["kind"] == "prefill":
            jobs.append(("speed", model, *how, f"--prompt={workload['prompt']}", "--steps=0"))
    total = 0.0
    for number, job in enumerate(jobs, 1):
        started = monotonic()
        script = str(Path(__file__).with_name("as_today.py"))
        subprocess.run([sys.executable, script, *job], check=True, capture_output=True)
        total += monotonic() - started
        shown = " ".join(word for word in job if not word.startswith("/"))
        _say(f"as today, {number} of {len(jobs)}: {shown}: {monotonic() - started:.0f} s")
    return total


def _prepare(folder: Path, run: Run) -> tuple[dict[str, Path], dict[str, Path]]:
    """The models of a run as transformers loads them, and its texts, cut as they were here."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from bitgate import quantize
    from bitgate.catalog import load
    from bitgate.sources import load_documents, load_model, windows

    disable_progress_bar()
    catalog = load(ROOT / "fixtures", quantize.recipe_types())
    models: dict[str, Path] = {}
    texts: dict[str, Path] = {}
    for record in run.records.values():
        model, workload = catalog.models[record["model"]], record["workload"]
        if model.name not in models:
            models[model.name] = folder / model.name
            models[model.name].mkdir()
            if model.source.kind == "shapes":
                config = models[model.name] / "config.json"
                config.write_text(json.dumps(model.config), "utf-8")
                continue
            loaded = load_model(model, device="cpu", dtype=torch.float32)
            loaded.module.save_pretrained(models[model.name])
            loaded.tokenizer.save_pretrained(models[model.name])
        if workload["kind"] == "perplexity" and workload["name"] not in texts:
            dataset = catalog.datasets[workload["name"]]
            text = windows(dataset, loaded.tokenizer, load_documents(dataset))
            rows = text.tokens[: -(-dataset.tokens // (dataset.window - 1))]
            path = texts[dataset.name] = folder / f"{dataset.name}.jsonl"
            decoded = [json.dumps({"text": loaded.tokenizer.decode(row)}) for row in rows]
            path.write_text("\n".join(decoded), "utf-8")
    return models, texts


def _say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)
