"""When the runs of a commit begin."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

from bitgate.history.points import History
from bitgate.history.reading import HistoryError


def start_of(revision: str, history: History) -> datetime:
    """When the first run of a revision was measured; if none is recorded, when it was committed.

    A revision is whatever git takes here (a tag, a branch, HEAD~3), or the beginning of a recorded
    commit, which needs no git.

    Raises:
        HistoryError: if neither git nor a run knows it.
    """
    resolved = _git(
        "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
    )
    for wanted in filter(None, (resolved, revision if len(revision) >= 4 else None)):
        for point in history.points:  # in order of time
            if (point.of.commit or "").startswith(wanted):
                return point.of.run.time
    if resolved is not None:
        committed = _git("show", "--no-patch", "--format=%ct", resolved)
        if committed is not None:
            return datetime.fromtimestamp(int(committed), UTC)
    commits = list(dict.fromkeys(point.of.commit for point in history.points if point.of.commit))
    known = ", ".join(commit[:8] for commit in commits[-5:]) or "none"
    raise HistoryError(
        f"--since {revision}: git knows no such revision here, and no run is of it; the last "
        f"commits with runs are {known}"
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, check=True, timeout=10, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
