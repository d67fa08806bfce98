"""A metric: one named quantity with its unit, its better direction, and how sure we are of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Spec:
    """What is known of a metric before it is measured."""

    name: str
    unit: str
    better: Better
    kinds: tuple[str, ...]
    meaning: str
    predicted: bool = False  #: whether it comes with an expected value, which `within` needs


#: Every metric there is. A gate on a name that is not here is an error, so a typo is seen.
SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("perplexity", "1", "lower", ("perplexity",), "exp of the mean negative log-likelihood per token"),
        Spec("base_perplexity", "1", "neither", ("perplexity", "finetune"), "the same of the unquantized model"),
        Spec("perplexity_ratio", "1", "lower", ("perplexity",), "perplexity over the base's, paired by window"),
        Spec("kl_divergence", "nat/token", "lower", ("perplexity",), "KL(base || quantized) over the full vocabulary"),
        Spec("top1_agreement", "1", "higher", ("perplexity", "accuracy"), "share of positions where both prefer the same token, or of items in the same class"),
        Spec("accuracy", "1", "higher", ("accuracy", "task"), "share of items answered right"),
        Spec("base_accuracy", "1", "neither", ("accuracy", "task"), "the same of the unquantized model"),
        Spec("accuracy_difference", "1", "higher", ("accuracy", "task"), "accuracy minus the base's, paired by item"),
        Spec("base_over_majority", "1", "neither", ("accuracy",), "the base's accuracy minus that of always answering the commonest label, paired by item"),
        Spec("mcnemar_p", "1", "neither", ("accuracy", "task"), "chance of a difference at least as large if both were equally good: McNemar's exact test"),
        Spec("accuracy_norm", "1", "higher", ("task",), "share of items answered right by log-likelihood per character"),
        Spec("accuracy_norm_difference", "1", "higher", ("task",), "that minus the base's, paired by item"),
        Spec("target_nll_difference", "nat/item", "lower", ("task",), "negative log-likelihood of the right answers minus the base's, paired by item"),
        Spec("rouge1", "1", "higher", ("rouge",), "ROUGE-1, F1, of summaries against the base's"),
        Spec("rouge2", "1", "higher", ("rouge",), "ROUGE-2, F1, of summaries against the base's"),
        Spec("rougeL", "1", "higher", ("rouge",), "ROUGE-L, F1, of summaries against the base's"),
        Spec("rouge1_reference", "1", "higher", ("rouge",), "ROUGE-1, F1, of summaries against references"),
        Spec("rouge2_reference", "1", "higher", ("rouge",), "ROUGE-2, F1, of summaries against references"),
        Spec("rougeL_reference", "1", "higher", ("rouge",), "ROUGE-L, F1, of summaries against references"),
        Spec("rouge1_reference_difference", "1", "higher", ("rouge",), "that of ROUGE-1 minus the base's, paired by document"),
        Spec("rouge2_reference_difference", "1", "higher", ("rouge",), "that of ROUGE-2 minus the base's, paired by document"),
        Spec("rougeL_reference_difference", "1", "higher", ("rouge",), "that of ROUGE-L minus the base's, paired by document"),
        Spec("macro_f1", "1", "higher", ("accuracy",), "mean over the classes of F1"),
        Spec("macro_f1_difference", "1", "higher", ("accuracy",), "macro-F1 minus the base's, paired by item"),
        Spec("training_gain", "nat/token", "higher", ("finetune",), "log-perplexity that the adapter takes off the model that it was trained on"),
        Spec("gain_kept", "1", "higher", ("finetune",), "share of training_gain that is left once the adapter is merged"),
        Spec("deployed_gain", "1", "higher", ("finetune",), "share of training_gain by which the deployed model is better than the untuned one, quantized alike"),
        Spec("deployed_perplexity", "1", "lower", ("finetune",), "of the tuned model, quantized by the recipe"),
        Spec("deployed_ratio", "1", "lower", ("finetune",), "deployed perplexity over the base's, neither tuned nor quantized; paired by window"),
        Spec("tuned_perplexity", "1", "lower", ("finetune",), "of the model with its adapter, as it was trained"),
        Spec("merged_perplexity", "1", "lower", ("finetune",), "of the adapter merged into the dequantized model"),
        Spec("untuned_perplexity", "1", "neither", ("finetune",), "of the base quantized by the recipe, untuned"),
        Spec("step_seconds", "s", "lower", ("finetune",), "time of a training step; of the one time that the adapter was trained"),
        Spec("training_peak_mib", "MiB", "lower", ("finetune",), "peak memory of the training process, beyond what its libraries take"),
        Spec("items_per_second", "item/s", "higher", ("accuracy",), "quantized, at this batch size"),
        Spec("evaluation_speedup", "1", "higher", ("accuracy",), "base's time over quantized time for the same batches, in turn; wall clock"),
        Spec("quantize_seconds", "s", "lower", ("quantize", "energy"), "time to quantize the model"),
        Spec("size_mib", "MiB", "lower", ("quantize",), "the saved file; expected: predicted from shapes", True),
        Spec("memory_mib", "MiB", "lower", ("quantize",), "all tensors of the served model; expected: predicted from shapes", True),
        Spec("base_size_mib", "MiB", "neither", ("quantize",), "all tensors of the base, tied weights once"),
        Spec("reload_difference", "1", "lower", ("quantize",), "largest logit difference after save and load"),
        Spec("weight_error", "1", "lower", ("quantize",), "largest ||W - Q|| / ||W|| of a quantized layer; compared layer by layer"),
        Spec("packed_layers", "layers", "higher", ("quantize", "perplexity", "accuracy", "task", "rouge", "finetune", "decode", "prefill"), "layers served by the chosen kernel; expected: all that the recipe quantizes", True),
        Spec("speedup", "1", "higher", ("decode", "prefill"), "base's time over quantized time, interleaved; wall clock"),
        Spec("cpu_speedup", "1", "higher", ("decode", "prefill"), "the same by the CPU clock, which stops while a process waits: one thread on a CPU"),
        Spec("tokens_per_second", "token/s", "higher", ("decode", "prefill"), "quantized, all sequences together"),
        Spec("base_tokens_per_second", "token/s", "neither", ("decode", "prefill"), "base, all sequences together"),
        Spec("peak_load_mib", "MiB", "lower", ("memory",), "most memory while the base is loaded, over the process before"),
        Spec("peak_quantize_mib", "MiB", "lower", ("memory",), "the same while it is quantized, which uses it up layer by layer, and served"),
        Spec("peak_evaluate_mib", "MiB", "lower", ("memory",), "the same while the quantized model is given one batch"),
        Spec("base_peak_evaluate_mib", "MiB", "neither", ("memory",), "the same of the unquantized model, in another process"),
        Spec("peak_evaluate_ratio", "1", "lower", ("memory",), "peak of evaluating over the base's, same batch"),
        Spec("peak_quantize_ratio", "1", "lower", ("memory",), "the larger peak of loading and quantizing, over all tensors of the base"),
        Spec("device_peak_mib", "MiB", "lower", ("memory",), "accelerators: most of the device in use while evaluating, by whomever"),
        Spec("evaluate_seconds", "s", "lower", ("energy",), "time of the quantized model for all inputs at this batch size"),
        Spec("base_evaluate_seconds", "s", "neither", ("energy",), "the same of the unquantized model"),
        Spec("quantize_kwh", "kWh", "lower", ("energy",), "energy of quantizing the model"),
        Spec("evaluate_kwh", "kWh", "lower", ("energy",), "energy of the quantized model for all inputs at this batch size"),
        Spec("base_evaluate_kwh", "kWh", "neither", ("energy",), "the same of the unquantized model"),
        Spec("joules_per_token", "J/token", "lower", ("energy",), "energy of evaluating over the tokens read; texts"),
        Spec("joules_per_item", "J/item", "lower", ("energy",), "energy of evaluating over the items classified"),
        Spec("energy_ratio", "1", "lower", ("energy",), "energy of evaluating over the base's, same inputs and batch"),
        Spec("quantize_kg_co2eq", "kg CO2eq", "lower", ("energy",), "emissions of quantizing the model"),
        Spec("evaluate_kg_co2eq", "kg CO2eq", "lower", ("energy",), "emissions of evaluating at this batch size"),
        Spec("base_evaluate_kg_co2eq", "kg CO2eq", "neither", ("energy",), "the same of the unquantized model"),
        Spec("latency_ms", "ms", "lower", ("decode", "prefill"), "quantized: median time of a decode step, or of the prompt"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval and where it comes from.

    `level` is its coverage over all looks together; `n` counts the independent units that were
    resampled, of the kind named by `unit` ("window", "process", ...). `deviation`, of speeds, is
    the standard deviation of the logarithm over these processes, if there are several: later runs
    are compared by it.
    """

    low: float
    high: float
    level: float
    method: str
    unit: str
    n: int
    deviation: float | None = None

    def record(self) -> dict[str, Any]:
        """JSON for a run, without what is not known."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Metric:
    """A measured value: with an interval, or exact (`interval` is None).

    `expected` is what theory predicts (a size from shapes, a count of layers); a gate's
    `within` bound is relative to it. `by` names what the value is of where the name does not say:
    of layers the classes that serve them, of a peak of memory the method, of energy its source.
    `modelled` values follow from assumptions, not from an instrument: they are shown, and gates
    pass them over.
    """

    name: str
    value: float
    interval: Interval | None = None
    expected: float | None = None
    by: str = ""
    modelled: bool = False

    @property
    def spec(self) -> Spec:
        return SPECS[self.name]

    @property
    def low(self) -> float:
        return self.value if self.interval is None else self.interval.low

    @property
    def high(self) -> float:
        return self.value if self.interval is None else self.interval.high

    @property
    def finite(self) -> bool:
        return all(math.isfinite(x) for x in (self.value, self.low, self.high))

    def record(self) -> dict[str, Any]:
        """JSON for a run: docs/schema.md describes it."""
        out: dict[str, Any] = {
            "value": self.value,
            "unit": self.spec.unit,
            "better": self.spec.better,
            "interval": "exact" if self.interval is None else self.interval.record(),
        }
        if self.expected is not None:
            out["expected"] = self.expected
        if self.by:
            out["by"] = self.by
        if self.modelled:
            out["modelled"] = True
        return out

    def text(self, digits: int = 4) -> str:
        """`perplexity_ratio 1.338 (98 % interval 1.329 to 1.347, Student t over 32 windows)`."""
        text = f"{self.name} {number(self.value, digits)}"
        by = f", by {self.by}" if self.by else ""
        if (i := self.interval) is not None:
            return (
                f"{text} ({100 * i.level:g} % interval {number(i.low, digits)} to "
                f"{number(i.high, digits)}, {i.method} over {i.n} {plural(i.unit, i.n)}{by})"
            )
        if self.expected is not None:
            return f"{text} (exact, expected {number(self.expected, digits)}{by})"
        return f"{text} (exact{by})"

    @classmethod
    def of_record(cls, name: str, record: Mapping[str, Any]) -> Metric:
        """The metric that `record` was made of."""
        interval = record["interval"]
        return cls(
            name,
            record["value"],
            None if interval == "exact" else Interval(**interval),
            record.get("expected"),
            record.get("by", ""),
            record.get("modelled", False),
        )

    def __str__(self) -> str:
        return self.text()


def number(x: float, digits: int = 4) -> str:
    """`digits` significant digits, for reading only: what is judged is never rounded."""
    if not math.isfinite(x):
        return str(x)
    if x == int(x) and abs(x) < 1e6:
        return str(int(x))
    return f"{x:.{digits}g}" if abs(x) < 1e4 else f"{x:.{digits - 1}e}"


def decimals(x: float, places: int) -> str:
    """So many decimals, for reading only; of what is smaller than 1 two digits, so that a small
    model does not have 0.0 MiB."""
    if not math.isfinite(x):
        return str(x)
    return f"{x:.{places}f}" if abs(x) >= 1 else f"{x:.2g}"


def plural(unit: str, n: int) -> str:
    if n == 1:
        return unit
    return unit + ("es" if unit.endswith("s") else "s")
