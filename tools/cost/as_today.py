"""One cell, done the way it is mostly done today: a process of its own that loads the model,
quantizes it with hqq, and either lets lm-eval score the text or times steps.

    python tools/cost/as_today.py quality MODEL TEXT.jsonl --bits 4 --group-size 64
    python tools/cost/as_today.py speed MODEL --bits 4 --group-size 64 --prompt 32 --steps 51

MODEL is a folder with a config.json; without weights in it, they are random.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

TASK = """
task: text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {text}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
metadata: {{version: 1.0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--axis", type=int, default=1)
    parser.add_argument("--no-solver", action="store_true", help="round to nearest")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument(
        "--steps", type=int, default=16, help="tokens to decode; 0 reads the prompt"
    )
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    model = load(options.model)
    if options.what == "speed":
        base = seconds(model, options.prompt, options.steps)
        quantize(model, options)
        print(f"speedup {base / seconds(model, options.prompt, options.steps):.3f}")
    else:
        quantize(model, options)
        print(score(model, options.model, options.text))


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if list(folder.glob("*.safetensors")):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = AutoConfig.from_pretrained(folder)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def quantize(model: Any, options: argparse.Namespace) -> None:
    """In place, all linears but the head, as hqq's own readme does it."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    config = BaseQuantizeConfig(
        nbits=options.bits, group_size=options.group_size, axis=options.axis
    )
    config["weight_quant_params"]["optimize"] = not options.no_solver
    AutoHQQHFModel.quantize_model(model, config, compute_dtype=torch.float32, device="cpu")


def score(model: Any, folder: Path, text: Path) -> dict[str, float]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="bitgate-task-") as tasks:
        Path(tasks, "text.yaml").write_text(TASK.format(text=text.resolve()))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu"),
            tasks=["text"],
            task_manager=TaskManager(include_path=tasks, include_defaults=False),
            bootstrap_iters=0,
        )
    results: dict[str, float] = found["results"]["text"]
    return results


def seconds(model: Any, prompt: int, steps: int) -> float:
    """Of decoding `steps` tokens after a prompt, or of reading a prompt if `steps` is 0."""
    import torch

    tokens = torch.randint(0, model.config.vocab_size, (1, prompt))
    with torch.inference_mode():
        start = perf_counter()
        made = model(tokens, use_cache=True)
        if not steps:
            return perf_counter() - start
        start = perf_counter()
        for _ in range(steps):
            token = made.logits[:, -1:].argmax(-1)
            made = model(token, past_key_values=made.past_key_values, use_cache=True)
    return perf_counter() - start


if __name__ == "__main__":
    main()
