"""Models small enough to quantize in milliseconds, and texts of random tokens for them; and whole
projects whose cases cost nothing."""

import pytest

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
    two seconds sooner."""
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
def hqq():
    """Quantizes a module by HQQ, by default to 4 bits in groups of 64."""
    from bitgate.quantize import method

    def quantize(module, **recipe):
        how = method("hqq")
        recipe = how.RECIPE(**{"bits": 4, "group_size": 64, **recipe})
        return how.quantize(module, recipe, next(module.parameters()).dtype)

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
