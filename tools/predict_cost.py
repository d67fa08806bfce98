"""What `bitgate predict` costs: 20 models x 30 recipes, with a lock and without one.

    python tools/predict_cost.py [ROUNDS]

The models are random shapes of 16 to 40 blocks, the recipes those of hqq's grid and of
bitsandbytes, linear and torchao. Prints the least of ROUNDS (default 3) by the clock and by CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [str(Path(sys.executable).with_name("bitgate"))]
WIDTHS = range(1024, 5120, 512)
MODEL = """
[model.shape-{at}]
family = "llama"
source = {{ kind = "shapes" }}
[model.shape-{at}.config]
model_type = "llama"
vocab_size = 32000
hidden_size = {width}
intermediate_size = {wide}
num_hidden_layers = {blocks}
num_attention_heads = 16
num_key_value_heads = 8
"""


def models() -> str:
    made = []
    for at in range(20):
        width = WIDTHS[at % len(WIDTHS)]
        made.append(MODEL.format(at=at, width=width, wide=width * 3, blocks=16 + at * 24 // 19))
    return "".join(made)


def recipes() -> list[str]:
    grid = [f"hqq-w{bits}g{group}" for bits in (8, 4, 3, 2, 1) for group in (32, 64, 128)]
    axis0 = [f"{name}-axis0" for name in grid[:9]]
    others = ["bitsandbytes-int8", "bitsandbytes-nf4", "bitsandbytes-fp4", "linear-w8-channel"]
    return [*grid, *axis0, *others, "linear-w4g64", "torchao-w8"]


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system, done.stdout


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "fixtures").mkdir()
        (folder / "fixtures" / "models.toml").write_text(models())
        asked = [part for at in range(20) for part in ("--model", f"shape-{at}")]
        asked += [part for name in recipes() for part in ("--recipe", name)]
        predict = [*COMMAND, "predict", "--device", "cpu", "--json", *asked]
        for how in ("without a lock", "with a lock"):
            if how == "with a lock":
                subprocess.run([*COMMAND, "lock"], cwd=folder, check=True, capture_output=True)
            runs = [timed(predict, folder) for _ in range(rounds)]
            found = json.loads(runs[0][2])["models"]
            cells = sum(len(model["cells"]) for model in found)
            wall, cpu = (min(run[at] for run in runs) for at in (0, 1))
            print(f"{how}: {len(found)} models, {cells} cells: {wall:.1f} s, {cpu:.1f} s of CPU")


if __name__ == "__main__":
    main()
