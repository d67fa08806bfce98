"""Finding runs: by path, number, git revision, `latest` or `accepted`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from bitgate.history.saved import RunError, SavedRun, Side, meant, name_of, names, read_run, short
from bitgate.history.schema import Record

LATEST = "latest"
ACCEPTED = "accepted"
NUMBERED = "[0-9][0-9][0-9][0-9]_*.json"
#: keys of a workload that say only when enough is measured; the windows themselves are compared
HOW_MUCH = {"tokens", "tokens_limit"}
DEPTH = 200  #: runs of a folder that are read, the newest


@dataclass(frozen=True)
class Reference:
    """What is compared with: for each case the newest of `runs` that has it.

    `asked` is how the user named it. `history` are runs that passed, up to the reference, newest
    first: they say how much a speed varies from run to run.
    """

    asked: str
    runs: Sequence[SavedRun]
    history: Sequence[SavedRun] = ()
    #: cases of which nothing before that time counts: what was measured then had failed a gate, and
    #: was accepted
    begins: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """`0007 (5d41402)`, `latest, of which the newest is 0007 (5d41402)`."""
        if self.asked == ACCEPTED or not self.runs:
            return self.asked
        label = self.runs[0].label
        if len(self.runs) == 1:
            return label if self.asked == self.runs[0].name else f"{self.asked}, {label}"
        return f"{self.asked}, the newest of which is {label}"

    @property
    def cases(self) -> list[str]:
        """Every case that it has, the newest run's first."""
        return list(dict.fromkeys(case for run in self.runs for case in run.records))

    def find(self, case: str, like: Record | None = None) -> Side | None:
        """The case as it was measured: where several runs or machines have, by the one that is
        most `like` a record, else by the newest. RunError if its scores cannot be read."""
        found = [
            (_likeness(record, like), -at, number, run, record)
            for at, run in enumerate(self._since(case, self.runs))
            for number, record in enumerate(run.records.get(case, ()))
        ]
        if not found:
            return None
        _, _, number, run, record = max(found, key=lambda one: one[:2])
        return run.side(record, number)

    def before(self, case: str) -> list[SavedRun]:
        """The history of a case."""
        return self._since(case, self.history)

    def _since(self, case: str, runs: Sequence[SavedRun]) -> list[SavedRun]:
        return [run for run in runs if run.when >= self.begins.get(case, "")]

    @property
    def failed(self) -> dict[str, str]:
        """What failed in any of its runs and is in none of the newer ones, with the reason."""
        out: dict[str, str] = {}
        seen: set[str] = set()
        for run in self.runs:
            out |= {case: why for case, why in run.failed.items() if case not in seen | out.keys()}
            seen |= run.records.keys()
        return out


def _likeness(record: Record, like: Record | None) -> tuple[bool, bool]:
    """Executed alike counts more than the machine."""
    if like is None:
        return (False, False)
    return not differing(record, like, timed=False), record.hardware == like.hardware


def differing(then: Record, now: Record, *, timed: bool) -> list[str]:
    """Why two records of a case cannot be compared; nothing if they can.

    Threads and hardware count only where time does: they change no score by more than rounding.
    Versions never count, as an upgrade is just what one wants to judge.
    """
    ran, runs = then.execution, now.execution
    pairs = {
        "device": (ran.device.partition(":")[0], runs.device.partition(":")[0]),
        "dtype": (ran.dtype, runs.dtype),
        "kernel": (ran.kernel, runs.kernel),
        "compiled": (str(ran.compiled).lower(), str(runs.compiled).lower()),
    }
    if timed:
        pairs["threads"] = str(ran.threads), str(runs.threads)
        pairs["hardware"] = then.hardware or "unknown", now.hardware or "unknown"
        if then.cores and now.cores:  # earlier runs did not record them
            pairs["cores"] = str(then.cores), str(now.cores)
    for key in sorted({*then.workload, *now.workload} - HOW_MUCH):
        pairs[f"workload's {key}"] = str(then.workload.get(key)), str(now.workload.get(key))
    return [f"{key} {old} then, {new} now" for key, (old, new) in pairs.items() if old != new]


@dataclass
class Store:
    """Folders of saved runs, and beside them what was accepted."""

    folders: Sequence[Path]
    #: the file of `bitgate accept`
    accepted: Path
    #: files that cannot be used, and why
    refused: dict[Path, str] = field(default_factory=dict)

    @cached_property
    def runs(self) -> list[SavedRun]:
        """All that can be read, newest first."""
        found = []
        for path in self._paths():
            try:
                found.append(read_run(path))
            except RunError as error:
                self.refused[path] = str(error)
        return sorted(found, key=lambda run: (run.when, run.name), reverse=True)

    def _paths(self) -> Iterable[Path]:
        seen: set[Path] = set()
        for folder in self.folders:
            for inside in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
                for path in sorted(inside.glob(NUMBERED), reverse=True)[:DEPTH]:
                    if path.resolve() not in seen:
                        seen.add(path.resolve())
                        yield path

    @property
    def passed(self) -> list[SavedRun]:
        """Those that may be a reference, newest first."""
        return [run for run in self.runs if run.passed]

    def reference(self, asked: str) -> Reference:
        """Runs that passed, as `asked` names them, with the history that led to them.

        RunError with what there is instead, if there is none: a run that failed is no reference.
        """
        found = self.find(asked)
        if asked in (LATEST, ACCEPTED):
            begins = {case: run.when for run in self._meant for case in run.records}
            return Reference(asked, found, self._references, begins)
        good = [run for run in found if run.passed]
        if not good:
            raise RunError(
                f"{asked}: {found[0].label} is no reference, as it did not pass: "
                f"{found[0].trouble}; {self.overview()}"
            )
        newest = (good[0].when, good[0].name)
        before = [run for run in self.passed if (run.when, run.name) <= newest]
        known = {run.path.resolve() for run in before}
        outside = [run for run in good if run.path.resolve() not in known]
        return Reference(asked, good, [*outside, *before])

    def either(self, asked: str | None) -> Reference:
        """The same, also of runs that failed: to look at, not to gate on. None means the run that
        was saved last."""
        if asked is None:
            if not self.runs:
                raise RunError(self.overview())
            return Reference(self.runs[0].name, self.runs[:1])
        found = self.find(asked)
        return Reference(asked, found, self.passed)

    def find(self, asked: str) -> list[SavedRun]:
        """The runs that `asked` means, newest first, at least one: a path, a number, a git
        revision, `latest` (all that passed) or `accepted`.

        Raises:
            RunError: if there is none, or it cannot be read; naming what there is.
        """
        if asked == ACCEPTED:
            return [self._accepted()]
        if asked == LATEST:
            return self._latest()
        path = Path(asked)
        if path.is_file() or path.suffix == ".json":
            return [read_run(path)]
        if re.fullmatch(r"\d{1,4}", asked) and (numbered := self._numbered(asked)):
            return [numbered]
        return self._of_revision(asked)

    def _accepted(self) -> SavedRun:
        if not self.accepted.is_file():
            raise RunError(
                f"accepted: there is no {self.accepted}: nothing was accepted yet; "
                "`bitgate accept RUN --reason ...` does"
            )
        return read_run(self.accepted)

    def _latest(self) -> list[SavedRun]:
        if not self._references:
            raise RunError(f"latest: no saved run has passed; {self.overview()}")
        return self._references

    @property
    def _references(self) -> list[SavedRun]:
        """What passed, and what was accepted even so; newest first."""
        return sorted([*self._meant, *self.passed], key=lambda run: run.when, reverse=True)

    @cached_property
    def _meant(self) -> list[SavedRun]:
        """What was accepted although it had failed, as runs of the time when it was measured."""
        if not self.accepted.is_file():
            return []
        whole, cases = self._accepted(), meant(self.accepted)
        found = []
        for name in dict.fromkeys(note["run"] for note in cases.values()):
            notes = {case: note for case, note in cases.items() if note["run"] == name}
            first = next(iter(notes.values()))
            found.append(
                replace(
                    whole,
                    name=name_of(Path(name)),
                    commit=first["commit"],
                    when=first.get("measured", first["date"]),
                    records={case: whole.records[case] for case in notes},
                    failed={},
                    unfinished=0,
                )
            )
        return found

    def _numbered(self, asked: str) -> SavedRun | None:
        name = f"{int(asked):04}"
        found = [run for run in self.runs if run.name == name]
        if len(found) > 1:
            paths = " and ".join(str(run.path) for run in found)
            raise RunError(f"{asked}: there are {paths}: give the path of one")
        if not found:
            for path, why in self.refused.items():
                if path.name.startswith(f"{name}_"):
                    raise RunError(why)
        return next(iter(found), None)

    def _of_revision(self, asked: str) -> list[SavedRun]:
        commit = revision(asked)
        if commit is None:
            raise RunError(
                f"{asked}: no such file, no saved run of this number and no git revision; "
                f"{self.overview()}"
            )
        clean = [run for run in self.runs if run.commit and run.commit.startswith(commit)]
        found = [run for run in clean if not str(run.commit).endswith("+")]
        if found:
            return found
        called = short(commit) if asked.startswith(commit[:7]) else f"{asked} ({short(commit)})"
        changed = (
            f" without uncommitted changes ({names(run.name for run in clean)} had some: name it "
            "by its number)"
            if clean
            else ""
        )
        raise RunError(
            f"no saved run of {called}{changed}: make one with `git checkout {asked}` and "
            f"`pytest bench --benchmark-autosave`; {self.overview()}"
        )

    def overview(self) -> str:
        """What there is, in a few words."""
        where = ", ".join(map(str, self.folders))
        if not self.runs and not self.refused:
            return f"there are no saved runs in {where} (--benchmark-autosave saves one)"
        parts = [f"there is {names(_described(run) for run in self.runs)}"] if self.runs else []
        if self.refused:
            why = "; ".join([*self.refused.values()][:3])
            parts.append(f"{len(self.refused)} files in {where} cannot be used: {why}")
        return "; ".join(parts)


def _described(run: SavedRun) -> str:
    return run.label if run.passed else f"{run.label}, which did not pass"


def revision(asked: str) -> str | None:
    """The whole hash of a git revision; of what looks like a hash itself, if git does not know it,
    as a saved run may be of a commit that is not here."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{asked}^{{commit}}"],
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return asked if re.fullmatch(r"[0-9a-f]{7,40}", asked) else None
    return done.stdout.strip()
