"""Which seeded regression does which gate catch?

    tox -e sensitivity                     all of them, on the real model: three quarters of an hour
    tox -e sensitivity -- --only one-scale --only slower-10
    tox -e sensitivity -- --keep FOLDER    leave runs and logs there

Before anything is seeded, good runs are made: one becomes the accepted baseline, and the speed is
measured often enough for a history. From these follows how small a change each gate can see. Then
each regression runs through `pytest bench` as anybody would start it, with thresholds.toml as it is
and `--against`, and what its records and failures say is the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from bitgate.history import layers

ROOT = Path(__file__).parents[2]
HISTORY = 8  #: good runs of the speed
LAUNCHES = 5  #: fresh processes of each run of the speed, as at nightly
SPEEDS = {"decode.speedup", "decode.cpu_speedup"}  #: by either clock
CASES = {
    "quantize": "bench/test_quantize.py::test_quantize[llama-smollm2-135m-hqq-w4g64]",
    "perplexity": "bench/test_perplexity.py::test_perplexity[llama-smollm2-135m-hqq-w4g64-enwiki]",
    "decode": "bench/test_decode.py::test_decode[llama-1b-4-layers-hqq-w4g64-head4-rtn-b1-short]",
}
#: what makes the cache of another revision is no regression by itself
SEEDED_BEFORE = {"stale-base": "other-revision"}


@dataclass
class Run:
    """What one invocation left."""

    status: int
    records: dict[str, dict[str, Any]]
    failures: dict[str, str]
    seconds: float
    scores: Path | None = None  #: per item

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """By kind of workload and name: `perplexity.kl_divergence`."""
        return {
            f"{case.partition('[')[0]}.{name}": metric
            for case, record in self.records.items()
            for name, metric in record["metrics"].items()
        }

    @property
    def caught_by(self) -> list[str]:
        """Metric and gate of every verdict that is a failure; else the error that ended a test."""
        found = [
            f"{verdict['metric']} ({verdict['gate']})"
            for record in self.records.values()
            for verdict in record["verdicts"]
            if verdict["outcome"] == "fail"
        ]
        judged = {case for case, record in self.records.items() if record["outcome"] == "fail"}
        for test, message in self.failures.items():
            if not any(case.partition("[")[2] in test for case in judged):
                found.append(f"error: {message.splitlines()[0][:90]}")
        return list(dict.fromkeys(found))


@dataclass
class Laboratory:
    """A folder with gates, runs and caches of its own, in which `pytest bench` is started."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, folder: Path) -> Laboratory:
        from bitgate.sources import cache_directory

        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "thresholds.toml", folder)
        catalog = folder / "catalog"  # the project's, so that its gates fit, and ours
        catalog.mkdir(exist_ok=True)
        for file in (ROOT / "fixtures").glob("*.toml"):
            ours = Path(__file__).parent / "catalog" / file.name
            added = ours.read_text("utf-8") if ours.is_file() else ""
            (catalog / file.name).write_text(f"{file.read_text('utf-8')}\n{added}", "utf-8")
        # models and texts are shared with everyone, scores of the base are not: some will be wrong
        cache = folder / "cache"
        cache.mkdir(exist_ok=True)
        for area in cache_directory().iterdir():
            link = cache / area.name
            if area.name not in ("base-scores", "locks") and not link.exists():
                link.symlink_to(area)
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return cls(folder, {"BITGATE_CACHE": str(cache), "PYTHONPATH": python_path})

    def has(self, name: str) -> bool:
        """Whether a run is there, of an invocation before this one, which was cut off."""
        return (self.folder / f"{name}.xml").is_file()

    def bench(self, name: str, kinds: Iterable[str], *arguments: str, again: bool = False) -> Run:
        """Measure, or take what is there unless it is to be measured `again`."""
        if "decode" in kinds:
            arguments = (f"--launches={LAUNCHES}", *arguments)
        saved, report = self.folder / f"{name}.json", self.folder / f"{name}.xml"
        if self.has(name) and not again:
            failures = _failures(report)
            return Run(
                bool(failures), _records(saved), failures, 0.0, saved.with_suffix(".parquet")
            )
        started = monotonic()
        with (self.folder / f"{name}.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", *(CASES[kind] for kind in kinds)),
                    *("-p", "tests.sensitivity.faults"),
                    *("--catalog", str(self.folder / "catalog")),
                    *("--thresholds", str(self.folder / "thresholds.toml")),
                    f"--benchmark-storage=file://{self.folder / 'runs'}",
                    *(f"--benchmark-json={saved}", f"--junitxml={report}", "--budget=30"),
                    *arguments,
                ],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode not in (0, 1) or not report.is_file():
            sys.exit(f"{name}: pytest ended with status {done.returncode}; see {log.name}")
        seconds = monotonic() - started
        scores = saved.with_suffix(".parquet")
        return Run(done.returncode, _records(saved), _failures(report), seconds, scores)


def _records(saved: Path) -> dict[str, dict[str, Any]]:
    try:
        benchmarks = json.loads(saved.read_text("utf-8"))["benchmarks"]
    except (OSError, ValueError):  # nothing could be measured
        return {}
    records = [b["extra_info"]["bitgate"] for b in benchmarks if "bitgate" in b["extra_info"]]
    return {record["case"]: record for record in records}


def _failures(report: Path) -> dict[str, str]:
    found = {}
    for test in ElementTree.parse(report).iter("testcase"):
        for outcome in (*test.findall("failure"), *test.findall("error")):
            found[str(test.get("name"))] = str(outcome.get("message"))
    return found


# --- how small a change each gate can see ------------------------------------------------------


@dataclass(frozen=True)
class Resolution:
    """The smallest change of a metric that makes a gate fail for sure."""

    metric: str
    gate: str
    value: float
    least: float


def resolutions(good: Run, speeds: dict[str, list[float]]) -> list[Resolution]:
    """Of the rules: from the good value to the bound, and half an interval more, as an interval has
    to lie beyond the bound as a whole. Of comparisons: the tolerance, and for the speed what eight
    earlier runs leave open."""
    found: list[Resolution] = []
    for case, record in good.records.items():
        kind = case.partition("[")[0]
        for verdict in record["verdicts"]:
            metric = record["metrics"][verdict["metric"]]
            found += _of_rule(f"{kind}.{verdict['metric']}", metric, verdict["gate"])
        for name, metric in record["metrics"].items():
            found += _of_history(f"{kind}.{name}", metric, speeds)
    return found


def _of_rule(key: str, metric: dict[str, Any], gate: str) -> Iterator[Resolution]:
    from bitgate.gates.thresholds import load

    rules = {rule.name: rule for rule in load(ROOT / "thresholds.toml").gates}
    if gate not in rules:
        return
    bound, value, interval = (
        rules[gate].require[key.partition(".")[2]],
        metric["value"],
        metric["interval"],
    )
    half = 0.0 if interval == "exact" else (interval["high"] - interval["low"]) / 2
    for limit in (bound.min, bound.max):
        if limit is not None:
            yield Resolution(key, gate, value, abs(limit - value) + half)
    if bound.within is not None:
        away = abs(value - metric["expected"])
        yield Resolution(key, gate, value, bound.within * abs(metric["expected"]) - away)


def _of_history(
    key: str, metric: dict[str, Any], speeds: dict[str, list[float]]
) -> Iterator[Resolution]:
    from bitgate.gates.tolerances import DEFAULTS

    value, tolerance = metric["value"], DEFAULTS.get(key.partition(".")[2])
    if tolerance is None:
        return
    least = tolerance.worse * (abs(value) if tolerance.scale == "ratio" else 1)
    if key in speeds:
        from scipy import stats

        logs = [math.log(speed) for speed in speeds[key]]
        error = float(stats.tstd(logs)) * math.sqrt(1 + 1 / len(logs))
        least += value * float(stats.t.isf(0.02, len(logs) - 1)) * error
    yield Resolution(key, "against earlier runs", value, least)


def visible(good: Run, seeded: Run, known: list[Resolution]) -> tuple[str, float]:
    """The metric that the regression moved farthest for a gate's resolution, and by how many of
    them; infinite where a metric of the good run was not measured any more."""
    best = ("", 0.0)
    for one in known:
        kind = one.metric.partition(".")[0]
        if not any(case.startswith(kind) for case in seeded.records):
            if any(kind in test for test in seeded.failures):
                return (one.metric, math.inf)
            continue
        moved = abs(seeded.metrics[one.metric]["value"] - one.value)
        if one.metric.endswith(f".{layers.METRIC}"):  # compared layer by layer
            moved = one.value * _farthest_layer(good, seeded)
        times = moved / one.least if one.least else (math.inf if moved else 0.0)
        if times > best[1]:
            best = (one.metric.partition(".")[2], times)
    return best


def _farthest_layer(good: Run, seeded: Run) -> float:
    """The largest relative change of a layer's error; of layers that only one has, all of it."""
    was, is_ = _layers(good), _layers(seeded)
    return max(abs(is_[x] / was[x] - 1) if was.get(x) and x in is_ else 1.0 for x in was | is_)


def _layers(run: Run) -> dict[str, float]:
    from pyarrow import parquet

    table = parquet.read_table(run.scores, columns=["layer", layers.METRIC]).to_pydict()
    found = zip(table["layer"], table[layers.METRIC], strict=True)
    return {name: error for name, error in found if name is not None}


# --- the whole of it ---------------------------------------------------------------------------


def main() -> int:
    from tests.sensitivity.faults import FAULTS

    names = [name for name in FAULTS if name not in SEEDED_BEFORE.values()]
    parser = argparse.ArgumentParser(
        prog="tox -e sensitivity --",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=names, help="may be given often")
    parser.add_argument(
        "--keep", type=Path, help="folder for runs and logs; runs there are taken as they are"
    )
    options = parser.parse_args()
    chosen = options.only or names
    with tempfile.TemporaryDirectory(prefix="bitgate-sensitivity-") as name:
        laboratory = Laboratory.build((options.keep or Path(name)).resolve())
        return _report(chosen, laboratory)


def _report(chosen: list[str], laboratory: Laboratory) -> int:
    from rich.console import Console
    from rich.table import Table

    from tests.sensitivity.faults import FAULTS

    kinds = {kind for name in chosen for kind in FAULTS[name].kinds}
    good, speeds = _good(laboratory, kinds)
    known = resolutions(good, speeds)
    seen, missed, below = [], [], []
    table = Table(box=None, title_justify="left", title=f"{len(chosen)} seeded regressions")
    for column in ("regression", "moved most", "of the resolution", "verdict", "caught by"):
        table.add_column(column, overflow="fold")
    for number, name in enumerate(chosen, 1):
        fault = FAULTS[name]
        if name in SEEDED_BEFORE and not laboratory.has(name):
            shutil.rmtree(laboratory.folder / "cache" / "base-scores", ignore_errors=True)
            before = SEEDED_BEFORE[name]
            left = laboratory.bench(before, FAULTS[before].kinds, "--fault", before, again=True)
            if not left.records:
                sys.exit(f"{before} measured nothing; see {laboratory.folder / before}.log")
        against = ("--against", "accepted")
        if "decode" in fault.kinds:
            against = ("--against", "latest")
        run = laboratory.bench(name, fault.kinds, "--fault", name, *against)
        metric, times = visible(good, run, known)
        caught = run.caught_by
        (seen if caught else missed if times > 1 else below).append(name)
        verdict = "[green]caught" if caught else "[red]MISSED" if times > 1 else "[dim]not visible"
        what = f"{metric}" if metric else "nothing"
        more = f"\nand {len(caught) - 3} more" if len(caught) > 3 else ""
        table.add_row(
            f"{name}\n[dim]{fault.what}",
            what,
            "" if not metric else "all" if math.isinf(times) else f"{times:.2f} x",
            verdict,
            "\n".join(caught[:3]) + more,
        )
        print(f"... {number} of {len(chosen)}: {name}: {run.seconds:.0f} s", file=sys.stderr)
    console = Console(width=int(os.environ.get("COLUMNS", "150")))
    console.print(_resolution_table(known))
    console.print(table)
    visible_ones = len(chosen) - len(below)
    console.print(
        f"{len(seen)} of {len(chosen)} caught; {visible_ones} were above the resolution of a gate, "
        f"{len(missed)} of them missed{': ' + ', '.join(missed) if missed else ''}"
        + (f"; below it: {', '.join(below)}" if below else "")
    )
    return 1 if len(missed) > 1 else 0


def _good(laboratory: Laboratory, kinds: set[str]) -> tuple[Run, dict[str, list[float]]]:
    """The accepted baseline and the history of the speeds, by metric; made once in a folder that
    is kept."""
    runs = laboratory.folder / "runs"
    quality = [k for k in ("quantize", "perplexity") if k in kinds]
    speeds: dict[str, list[float]] = {}
    good = Run(0, {}, {}, 0.0)
    if quality:
        print("... a good run, to be accepted", file=sys.stderr)
        good = laboratory.bench("good", quality, "--benchmark-save=good")
        _accept(laboratory, laboratory.folder / "good.json")
    if "decode" in kinds:
        for number in range(1, HISTORY + 1):
            print(f"... a good run of the speed, {number} of {HISTORY}", file=sys.stderr)
            run = laboratory.bench(f"speed-{number}", ["decode"], "--benchmark-save=speed")
            good.records.update(run.records)
            for name in SPEEDS & run.metrics.keys():
                speeds.setdefault(name, []).append(run.metrics[name]["value"])
    if any(r["outcome"] == "fail" for r in good.records.values()):
        sys.exit(f"the good runs have failures already; see {runs}")
    return good, speeds


def _accept(laboratory: Laboratory, run: Path) -> None:
    command = [
        *(sys.executable, "-c", "from bitgate.cli import main; main()", "accept", str(run)),
        *("--reason", "before regressions are seeded"),
        *("--thresholds", str(laboratory.folder / "thresholds.toml")),
    ]
    subprocess.run(command, check=True, env={**os.environ, **laboratory.environment}, cwd=ROOT)


def _resolution_table(known: list[Resolution]) -> Any:
    from rich.table import Table

    table = Table(box=None, title_justify="left", title="the smallest change that a gate must see")
    for column in ("metric", "gate", "good value", "resolution"):
        table.add_column(column, overflow="fold")
    for one in known:
        table.add_row(one.metric, one.gate, f"{one.value:.5g}", f"{one.least:.3g}")
    return table


if __name__ == "__main__":
    sys.exit(main())
