"""Models small enough to quantize in milliseconds, and texts of random tokens for them; and whole
projects whose cases cost nothing."""

import json
import math
import os

import pytest
from hypothesis import HealthCheck, settings

# The same examples each time: what CI says of a commit does not depend on luck. The nightly job
# looks further (HYPOTHESIS_PROFILE=default: new examples each time).
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

FREE = {
    "fixtures/models.toml": (
        '[model.llama-free]\nfamily = "llama"\nsource = { kind = "local", path = "none" }\n'
    ),
    "fixtures/datasets.toml": (
        '[dataset.words]\nformat = "plain"\nsource = { kind = "local", path = "none" }\n'
    ),
    "fixtures/matrix.toml": """
[[matrix]]
cadence = "commit"
models = ["llama-free"]
recipes = ["hqq-w4g64", "hqq-w4g64-dequantize"]
quantize = true
perplexity = ["words"]
""",
    "thresholds.toml": '[[gate]]\nname = "all"\nrequire.packed_layers = { within = 0 }\n',
    "pytest.toml": """
[pytest]
strict = true
addopts = ["--import-mode=importlib"]
""",
    "conftest.py": """
import pytest
from bitgate.catalog import Execution
from bitgate.measure.measurement import Batch
from bitgate.metric import Metric

pytest_plugins = ["bitgate.plugin"]

class Nothing:
    least = 1
    def batches(self):
        yield Batch([0.25, 0.5], {"nll": [1.0, 2.0]})
    def metrics(self, items, level, nominal):
        return [Metric("packed_layers", 7, expected=7)]

@pytest.fixture
def nothing():
    return Nothing()

@pytest.fixture
def execution():
    return Execution("cpu", "float32", 1, "dequantize")
""",
    "bench/test_quantize.py": """
import pytest

@pytest.mark.workload("quantize")
def test_quantize(nothing, benchmark, gate):
    gate.decide(benchmark, nothing)
""",
    "bench/test_perplexity.py": """
import pytest

@pytest.mark.workload("perplexity")
def test_perplexity(nothing, benchmark, gate):
    gate.decide(benchmark, nothing)
""",
}


@pytest.fixture
def pytester(pytester, monkeypatch):
    """Without the plugins that this project's own pyproject.toml leaves out: each process starts
    two seconds sooner. And without a GPU, which two workers would not be let share."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    without = ("anyio", "hypothesispytest", "platformdirs")
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(f"-p no:{plugin}" for plugin in without))
    return pytester


@pytest.fixture(scope="session")
def free_project():
    """Makes a project of two cells with two cases each in a folder; nothing is loaded there."""

    def make(folder):
        for name, content in FREE.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        return folder

    return make


@pytest.fixture(scope="session")
def llama():
    """Makes a Llama of two layers; the same arguments give the same weights.

    Weights are large enough for it to be sure of some tokens and unsure of others.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.set_num_threads(1)

    def make(*, seed=0, dtype=torch.float32, **changes):
        shape = {
            "vocab_size": 256,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.1,
            "tie_word_embeddings": False,
        }
        config = LlamaConfig(**{**shape, **changes})
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        if config.attention_bias:  # transformers sets biases to zero
            for part in module.modules():
                if getattr(part, "bias", None) is not None:
                    part.bias.normal_(std=0.5)
        return module

    return make


@pytest.fixture(scope="session")
def by_word():
    """Makes a tokenizer of the words w0, w1, ...; <pad> is its first token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(words=200, **special):
        vocabulary = {word: n for n, word in enumerate(("<pad>", "<unk>", "<eos>"))}
        vocabulary |= {f"w{n}": n + 3 for n in range(words)}
        made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        special = special or {"pad_token": "<pad>"}
        return PreTrainedTokenizerFast(
            tokenizer_object=made, unk_token="<unk>", eos_token="<eos>", **special
        )

    return make


@pytest.fixture(scope="session")
def classifier():
    """Makes a Llama of two layers that tells three classes apart; <pad> is its padding."""
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    def make(*, seed=0, **changes):
        shape = {
            "vocab_size": 256,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.1,
            "tie_word_embeddings": False,
            "num_labels": 3,
            "pad_token_id": 0,
        }
        torch.manual_seed(seed)
        config = LlamaConfig(**{**shape, **changes})
        module = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        return module.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def labelled_texts(by_word):
    """Makes texts of 2 to 30 random words with labels of three classes, as a model takes them."""
    import numpy as np

    from bitgate.sources import EncodedItems, LabelledItems

    def make(count, *, seed=0, labels=True, longest=64):
        rng = np.random.default_rng(seed)
        texts = [
            " ".join(f"w{n}" for n in rng.integers(0, 200, rng.integers(2, 31)))
            for _ in range(count)
        ]
        truth = tuple(rng.integers(0, 3, count).tolist()) if labels else None
        classes = ("negative", "neutral", "positive") if labels else ()
        items = LabelledItems(texts, truth, tuple(range(count)), classes, f"{count}/{seed}")
        return EncodedItems(items, by_word(), longest)

    return make


@pytest.fixture(scope="session")
def execution():
    """Makes an execution on the CPU in float32."""
    from bitgate.catalog import Execution

    def make(kernel="dequantize", **changes):
        fields = {"device": "cpu", "dtype": "float32", "threads": 1, "kernel": kernel}
        return Execution(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def served(execution):
    """Serves a module as it is: a base."""
    from bitgate.kernels.served import TorchServed

    return lambda module: TorchServed(module, execution("torch"))


@pytest.fixture(scope="session")
def loaded():
    """A module as if a source had loaded it; without a tokenizer."""
    from bitgate.sources import LoadedModel

    return lambda module: LoadedModel(module, None, "made here", None)


@pytest.fixture(scope="session")
def hqq(loaded):
    """Quantizes a module by HQQ, by default to 4 bits in groups of 64."""
    from bitgate.quantize import method

    def quantize(module, **recipe):
        how = method("hqq")
        recipe = how.RECIPE(**{"bits": 4, "group_size": 64, **recipe})
        return how.quantize(loaded(module), recipe, next(module.parameters()).dtype)

    return quantize


@pytest.fixture(scope="session")
def random_text():
    """Makes the windows of documents of random tokens, by a dataset's protocol."""
    from bitgate.catalog import Dataset
    from bitgate.sources.windows import cut

    def make(*, vocabulary=256, documents=(200, 150, 180), bos=None, seed=0, **protocol):
        import numpy as np

        source = {"kind": "local", "path": "unused"}
        fields = {"name": "random", "source": source, "format": "plain", "tokens": 1, "window": 16}
        dataset = Dataset.model_validate({**fields, "tokens_limit": 10**6, **protocol})
        rng = np.random.default_rng(seed)
        return cut(dataset, [rng.integers(0, vocabulary, n).tolist() for n in documents], bos)

    return make


@pytest.fixture(scope="session")
def documents():
    """Three of twelve paragraphs: sentences of random words, the last of which has been there."""
    import random

    syllables = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("na", "ro", "ti", "su")]

    def sentence(rng):
        words = rng.choices(syllables, k=rng.randint(12, 20))
        words[-1] = words[rng.randint(1, 5)]
        return " ".join(words).capitalize() + "."

    def prose(seed):
        rng = random.Random(seed)
        return "\n\n".join(" ".join(sentence(rng) for _ in range(6)) for _ in range(12))

    return [prose(seed) for seed in range(3)]


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer for which each byte is a token, and 256 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="session")
def items_of():
    """Runs a measurement to its end (or so many batches) and joins the columns of its batches."""
    from itertools import islice

    import numpy as np

    def run(measurement, batches=None):
        seen = list(islice(measurement.batches(), batches))
        return {key: np.concatenate([b.items[key] for b in seen]) for key in seen[0].items}

    return run


@pytest.fixture(scope="session")
def metrics_of():
    """A measurement's metrics by name, at 98 %."""
    return lambda measurement, items: {
        metric.name: metric for metric in measurement.metrics(items, 0.98, 0.98)
    }


class Runs:
    """Writes runs as pytest-benchmark saves them, of made-up figures."""

    def __init__(self, folder):
        self.folder = folder
        self.number = 0

    def save(self, *cases, name=None, commit="a" * 40, items=True, when=None, **top):
        """A run of cases that `speed`, `quality` or `sizes` have made; its path."""
        from bitgate.history.items import write_rows

        self.number += 1
        path = self.folder / (name or f"{self.number:04}_run.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "machine_info": {"node": "here", "cpu": {"brand_raw": "CPU"}},
            "commit_info": {"id": commit, "dirty": False},
            "benchmarks": [
                {
                    "fullname": f"bench/test_it.py::test_it[{number}]",
                    "extra_info": {"bitgate": {"commit": commit, **record}},
                    "stats": {"data": [0.5], "rounds": 1},
                }
                for number, (record, _) in enumerate(cases)
            ],
            "datetime": when or f"2026-01-01T00:{self.number:02}:00",
            "version": "5.3.1",
            **top,
        }
        path.write_text(json.dumps(content))
        if items:
            rows = [({"case": record["case"]}, columns) for record, columns in cases if columns]
            write_rows(path.with_suffix(".parquet"), rows)
        return path

    def record(self, case, metrics, **changes):
        execution = {"device": "cpu", "dtype": "float32", "threads": 1, "kernel": "cpu-int4"}
        record = {
            "schema": 1,
            "case": case,
            "workload": {"kind": case.partition("[")[0], "name": "w"},
            "execution": execution | changes.pop("execution", {}),
            "host": "here",
            "hardware": "CPU",
            "metrics": metrics,
            "verdicts": [],
            "outcome": "pass",
        }
        return record | changes

    def speed(
        self,
        value,
        case="decode[a]",
        processes=1,
        spread=0.05,
        deviation=None,
        cpu=None,
        cpu_deviation=None,
        **changes,
    ):
        """A case whose speedup has an interval of 98 % at that spread between processes, which were
        seen to differ by `deviation`; `cpu` is the one by the CPU clock."""
        half = math.exp(2.3263 * spread / math.sqrt(processes))
        interval = {
            "level": 0.98,
            "method": "made up",
            "unit": "process",
            "n": processes,
            "low": value / half,
            "high": value * half,
        }
        if deviation is not None:
            interval["deviation"] = deviation
        metrics = {
            "speedup": {"value": value, "unit": "1", "better": "higher", "interval": interval},
            "latency_ms": {"value": 9.0, "unit": "ms", "better": "lower", "interval": interval},
        }
        if cpu is not None:
            bounds = interval | {"low": cpu / half, "high": cpu * half, "deviation": cpu_deviation}
            metrics["cpu_speedup"] = metrics["speedup"] | {"value": cpu, "interval": bounds}
        return self.record(case, metrics, **changes), {}

    def quality(self, nll, case="perplexity[a]", base=None, kl=None, same=None, **changes):
        """A case with these scores, one a window of 100 tokens; a base that is near."""
        import numpy as np

        nll = np.asarray(nll, float)
        base = nll - 20 if base is None else np.asarray(base, float)
        columns = {
            "window": np.arange(len(nll)),
            "document": np.arange(len(nll)) // 4,
            "tokens": np.full(len(nll), 100),
            "nll": nll,
            "base_nll": base,
            "kl": np.full(len(nll), 5.0) if kl is None else np.asarray(kl, float),
            "same_top1": np.full(len(nll), 80.0) if same is None else np.asarray(same, float),
        }
        level = {"level": 0.98, "method": "made up", "unit": "window", "n": len(nll)}
        values = {
            "perplexity": (math.exp(nll.mean() / 100), "1", "lower"),
            "perplexity_ratio": (math.exp((nll - base).mean() / 100), "1", "lower"),
            "kl_divergence": (columns["kl"].mean() / 100, "nat/token", "lower"),
            "top1_agreement": (columns["same_top1"].mean() / 100, "1", "higher"),
        }
        metrics = {
            name: {
                "value": float(value),
                "unit": unit,
                "better": better,
                "interval": {"low": 0.9 * float(value), "high": 1.1 * float(value), **level},
            }
            for name, (value, unit, better) in values.items()
        }
        return self.record(case, metrics, **changes), columns

    def answers(self, correct, base, case="accuracy[a]", label=None, **changes):
        """A case whose items were answered right (1) or wrong (0), by the base too."""
        import numpy as np

        correct, base = np.asarray(correct, float), np.asarray(base, float)
        columns = {
            "number": np.arange(len(correct)),
            "label": np.zeros(len(correct), int) if label is None else np.asarray(label),
            "correct": correct,
            "base_correct": base,
            "same": (correct == base).astype(float),
        }
        level = {"level": 0.98, "method": "made up", "unit": "item", "n": len(correct)}
        values = {
            "accuracy": (correct.mean(), "higher"),
            "base_accuracy": (base.mean(), "neither"),
            "accuracy_difference": ((correct - base).mean(), "higher"),
            "top1_agreement": (columns["same"].mean(), "higher"),
        }
        metrics = {
            name: {
                "value": float(value),
                "unit": "1",
                "better": better,
                "interval": {"low": float(value) - 0.1, "high": float(value) + 0.1, **level},
            }
            for name, (value, better) in values.items()
        }
        return self.record(case, metrics, **changes), columns

    def sizes(self, case="quantize[a]", **metrics):
        """A case of exact metrics."""
        from bitgate.metric import SPECS

        exact = {
            name: {
                "value": float(value),
                "interval": "exact",
                "unit": SPECS[name].unit,
                "better": SPECS[name].better,
            }
            for name, value in metrics.items()
        }
        return self.record(case, exact), {}


@pytest.fixture
def runs(tmp_path):
    """Makes saved runs in `tmp_path / "runs"`."""
    return Runs(tmp_path / "runs")


@pytest.fixture(scope="session")
def cases():
    """Cases of two cells, by key: quantized, scored and decoded."""
    from bitgate.catalog import (
        Case,
        Cell,
        Dataset,
        Model,
        PhaseWorkload,
        QuantizeWorkload,
        Recipe,
        TextWorkload,
    )

    source = {"kind": "shapes"}
    model = Model.model_validate(
        {"name": "tiny", "family": "llama", "source": source, "format": "shapes", "config": {}}
    )
    text = {"name": "text", "source": {"kind": "local", "path": "text"}, "format": "plain"}
    workloads = (
        QuantizeWorkload(),
        TextWorkload(dataset=Dataset.model_validate({**text, "tokens": 100})),
        PhaseWorkload(kind="decode", name="b1"),
    )
    made = [
        Case(Cell(model, Recipe(method="hqq", bits=bits, group_size=64)), workload, "commit")
        for bits in (4, 8)
        for workload in workloads
    ]
    return {case.key: case for case in made}


@pytest.fixture(scope="session")
def save_run(cases, execution):
    """Saves a run as pytest-benchmark does, with records made by `Result`.

    `metrics` maps cases to metrics to values: a number is exact, a pair is a value and the
    half-width of its interval.
    """
    import json
    from datetime import UTC, datetime, timedelta

    from bitgate.history.record import Result
    from bitgate.metric import Interval, Metric

    def metric(name, value):
        if not isinstance(value, tuple):
            return Metric(name, value)
        middle, half, *n = value
        interval = Interval(middle - half, middle + half, 0.98, "Student t", "window", *(n or [32]))
        return Metric(name, middle, interval)

    def save(
        folder, number, metrics, *, commit="", host="here", cpu="a", kernel="dequantize", **changes
    ):
        records = []
        for key, values in metrics.items():
            measured = [metric(name, value) for name, value in values.items()]
            record = Result(cases[key], execution(kernel), measured, []).record()
            origin = {
                "commit": commit or f"{number:040x}",
                "host": host,
                "versions": {"torch": "2"},
            }
            records.append({**record, **origin, **changes})
        time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
        content = {
            "machine_info": {"node": host, "cpu": {"brand_raw": cpu, "count": 2}},
            "commit_info": {"id": "0" * 40, "dirty": False},
            "benchmarks": [{"extra_info": {"bitgate": record}} for record in records],
            "datetime": time.isoformat(),
            "version": "5.3.1",
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:04d}_{number:040x}_{time:%Y%m%d_%H%M%S}.json"
        path.write_text(json.dumps(content))
        return path

    return save
