"""The same command once more, in a fresh process, for only a few of its cases.

What this process learns it learns from its environment, so that the command line stays as it was
typed: later options only turn off what must happen once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bitgate.history.saved import RunError, read_run
from bitgate.history.schema import Record

#: names the node ids to run, and by being there says that this is such a process
VARIABLE = "BITGATE_AGAIN"


def is_again() -> bool:
    """Whether this is a process that measures again."""
    return VARIABLE in os.environ


def deselect(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what is to be measured again."""
    if not is_again():
        return
    wanted = set(json.loads(os.environ[VARIABLE]))
    gone = [item for item in items if item.nodeid not in wanted]
    items[:] = [item for item in items if item.nodeid in wanted]
    config.hook.pytest_deselected(items=gone)


def measure(
    config: pytest.Config, nodeids: Sequence[str], seconds: float
) -> tuple[dict[str, Record], str]:
    """What these tests yield in a fresh process, by case, and why something is lacking.

    `seconds` is what they took before; a process that takes far longer is given up.
    """
    with TemporaryDirectory(prefix="bitgate-again-") as folder:
        output = Path(folder) / "again.json"
        try:
            done = subprocess.run(
                _command(config, Path(folder), output),
                cwd=config.invocation_params.dir,
                stdin=subprocess.DEVNULL,  # nobody answers a debugger
                env={**os.environ, VARIABLE: json.dumps(list(nodeids))},
                capture_output=True,
                text=True,
                timeout=300 + 10 * seconds,
                check=False,
            )
            records = read_run(output).records
        except subprocess.TimeoutExpired:
            return {}, "a fresh process did not come to an end"
        except (OSError, RunError):
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            return {}, f"a fresh process could not measure it: {said[-1] if said else 'no output'}"
    return {case: found[-1] for case, found in records.items()}, ""


def _command(config: pytest.Config, folder: Path, output: Path) -> list[str]:
    # `python -m` puts the current folder on the path, `pytest` does not
    plain = [] if str(Path.cwd()) in sys.path or "" in sys.path else ["-P"]
    has = config.pluginmanager.hasplugin
    return [
        *(sys.executable, *plain, "-m", "pytest"),
        *map(str, config.invocation_params.args),
        *(["-n", "0"] if has("xdist") else []),
        *(["--junit-xml="] if has("junitxml") else []),
        # a storage of its own: no run is saved, no journal is touched
        *(f"--benchmark-storage=file://{folder}/storage", f"--benchmark-json={output}"),
        *("-o", f"cache_dir={folder}/cache"),
    ]
