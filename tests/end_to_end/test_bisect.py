"""`git bisect run` finds the commit that made a cell worse, by the recipe of docs/history.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = 'pytest_plugins = ["bitgate.plugin"]\n'
#: 4-bit layers answer with half as much noise, the same in every process
WORSE = (
    "import torch\n"
    "from bitgate.kernels.int4_linear import Int4Linear\n"
    "forward = Int4Linear.forward\n"
    "def noisy(self, x):\n"
    "    y = forward(self, x)\n"
    "    generator = torch.Generator().manual_seed(0)\n"
    "    return y + 0.5 * y.std() * torch.randn(y.shape, generator=generator)\n"
    "Int4Linear.forward = noisy\n"
)


@pytest.mark.slow
def test_bisecting_a_history(project, tmp_path):
    def git(*arguments, check=True):
        name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", *name, *arguments],
            cwd=project.path,
            env=project.environment(),
            capture_output=True,
            text=True,
            check=check,
        )

    def commit(message):
        git("add", "-A")
        git("commit", "-q", "-m", message)
        return git("rev-parse", "HEAD").stdout.strip()

    git("init", "-q")
    (project.path / ".gitignore").write_text("/cache\n/.benchmarks\n__pycache__\n")
    notes = project.path / "notes.txt"
    history = []
    for number in range(1, 7):
        notes.write_text(f"{number}\n")
        if number == 4:
            (project.path / "conftest.py").write_text(PLUGIN + WORSE)
        history.append(commit(f"change {number}"))

    # the script of docs/history.md, with this project's names
    recipe = (ROOT / "docs" / "history.md").read_text()
    script = re.search(r"    # bisect.sh.*?\n((?:    .*\n)+)", recipe)[1]
    bitgate = f'{sys.executable} -c "from bitgate.cli import main; main()"'
    pytest_ = " ".join(project.command("-k", "'w4g64 and words'"))
    script = (
        script.replace("/tmp/", f"{tmp_path}/")
        .replace('pytest bench -k "llama and w4g64 and enwiki"', pytest_)
        .replace("bitgate compare", f"{bitgate} compare")
    )
    assert pytest_ in script
    assert f"{bitgate} compare" in script
    path = tmp_path / "bisect.sh"
    path.write_text("\n".join(line[4:] for line in script.splitlines()) + "\n")

    git("checkout", "-q", history[0])
    good = project.run("-k", "w4g64 and words", f"--benchmark-json={tmp_path}/good.json")
    assert good.returncode == 0, good.stdout
    git("bisect", "start", history[-1], history[0])
    found = git("bisect", "run", "sh", str(path), check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{history[3]} is the first bad commit" in found.stdout, found.stdout
