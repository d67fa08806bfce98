"""Models small enough to quantize in milliseconds, and texts of random tokens for them."""

import pytest


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
