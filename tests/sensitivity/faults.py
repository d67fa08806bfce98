"""Regressions to be seeded into the real pipeline, as a pytest plugin.

    pytest bench -p tests.sensitivity.faults --fault solver-off

Each fault is put where such a mistake would be made: into the quantizer, into what serves, into the
text, or into the cache of the base's scores. What is measured, how, and by which gates it is judged
stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any

import pytest

ONE_LAYER = "model.layers.15.mlp.down_proj"


@dataclass(frozen=True)
class Fault:
    """A mistake, and which cases can show it (`-m` of pytest)."""

    what: str
    kinds: tuple[str, ...]
    install: Callable[[], None]


FAULTS: dict[str, Fault] = {}


def fault(name: str, what: str, *kinds: str) -> Callable[[Callable[[], None]], None]:
    def register(install: Callable[[], None]) -> None:
        FAULTS[name] = Fault(what, kinds, install)

    return register


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault", choices=sorted(FAULTS), help="seed this regression")


def pytest_collection(session: pytest.Session) -> None:
    """Not before: a module of the plugin that is imported earlier hides the fixture of its name."""
    name = session.config.getoption("fault")
    if name:
        from bitgate.measure import launches

        FAULTS[name].install()
        # fresh processes know nothing of pytest's plugins
        launches.COMMAND = (sys.executable, "-m", "tests.sensitivity.launch", name)


# --- in the quantizer ------------------------------------------------------------------------


def configured(change: Callable[[dict[str, Any]], None]) -> None:
    """Change what hqq is told."""
    from bitgate.quantize import hqq_layers

    original = hqq_layers.library_config

    def config(grouping: Any, solver: bool) -> dict[str, Any]:
        made = original(grouping, solver)
        change(made["weight_quant_params"])
        return made

    hqq_layers.library_config = config


def quantized(change: Callable[[Any], None]) -> None:
    """Change what quantizing yields."""
    from bitgate.quantize import hqq

    original = hqq.quantize

    def quantize(model: Any, recipe: Any, dtype: Any) -> Any:
        made = original(model, recipe, dtype)
        change(made)
        return made

    hqq.quantize = quantize


def each_meta(change: Callable[[dict[str, Any]], None]) -> None:
    quantized(lambda made: [change(made.layer(name).meta) for name in made.layers])


@fault("solver-off", "round to nearest: HQQ's solver is off", "quantize", "perplexity")
def solver_off() -> None:
    configured(lambda params: params.update(optimize=False))


@fault("coarse-scales", "scales kept with 3 bits of mantissa (fp8 e4m3)", "quantize", "perplexity")
def coarse_scales() -> None:
    def change(meta: dict[str, Any]) -> None:
        import torch

        scale = meta["scale"]
        top = scale.abs().max() / 256  # within the format's range, as scaled fp8 is used
        meta["scale"] = (scale / top).to(torch.float8_e4m3fn).to(scale.dtype) * top

    each_meta(change)


@fault("one-scale", "the scales of one layer are off by 2 %", "quantize", "perplexity")
def one_scale() -> None:
    def change(made: Any) -> None:
        made.layer(ONE_LAYER).meta["scale"] *= 1.02

    quantized(change)


@fault("no-zeros", "zero points dropped: the middle code stands for zero", "quantize", "perplexity")
def no_zeros() -> None:
    each_meta(lambda meta: meta["zero"].fill_(2 ** (meta["nbits"] - 1)))


@fault("group-size", "groups of 128 where 64 are asked for", "quantize", "perplexity")
def group_size() -> None:
    configured(lambda params: params.update(group_size=128))


@fault("axis", "grouped along the other axis", "quantize", "perplexity")
def axis() -> None:
    configured(lambda params: params.update(axis=0))


@fault("layer-left", "one layer is left unquantized", "quantize", "perplexity")
def layer_left() -> None:
    from bitgate.quantize import hqq
    from bitgate.quantize.replaced import put

    original = hqq.quantize

    def quantize(model: Any, recipe: Any, dtype: Any) -> Any:
        made = original(model, recipe, dtype)
        put(made.module, ONE_LAYER, model.module.get_submodule(ONE_LAYER))
        made.layers = tuple(name for name in made.layers if name != ONE_LAYER)
        return made

    hqq.quantize = quantize


@fault("head-too", "the output head is quantized by accident", "quantize", "perplexity")
def head_too() -> None:
    from bitgate.quantize import hqq

    original = hqq.quantize
    hqq.quantize = lambda model, recipe, dtype: original(
        model, recipe.model_copy(update={"head": recipe.bits}), dtype
    )


@fault("fat-scales", "scales and zeros stored twice as wide", "quantize")
def fat_scales() -> None:
    def change(meta: dict[str, Any]) -> None:
        meta.update(scale=meta["scale"].double(), zero=meta["zero"].double())

    each_meta(change)


# --- in what serves --------------------------------------------------------------------------


def served(change: Callable[[Any], None]) -> None:
    """Change what serves the quantized model, on whatever kernel."""
    from bitgate.quantize.replaced import ReplacedModel

    original = ReplacedModel.serve

    def serve(self: Any, execution: Any) -> Any:
        made = original(self, execution)
        change(made)
        return made

    ReplacedModel.serve = serve


@fault("fallback", "the packed kernel silently leaves one layer to the slow path", "quantize")
def fallback() -> None:
    from bitgate.kernels import cpu_int4

    original, seen = cpu_int4.pack, []

    def pack(weight: Any, bias: Any) -> Any:
        seen.append(weight)
        if len(seen) > 1:
            return original(weight, bias)
        import torch

        grouping = weight.grouping
        slow = torch.nn.Linear(grouping.in_features, grouping.out_features, bias=False)
        groups = weight.codes.reshape(*weight.scale.shape, -1).to(weight.scale.dtype)
        values = (groups - weight.zero[..., None]) * weight.scale[..., None]
        slow.weight.data = values.reshape(weight.codes.shape)
        return slow

    cpu_int4.pack = pack


@fault("more-memory", "10 % more memory is held while serving", "quantize")
def more_memory() -> None:
    def change(made: Any) -> None:
        import torch

        made.module.forgotten = torch.empty(made.memory_bytes() // 10, dtype=torch.uint8)

    served(change)


def slower(share: float) -> None:
    """Each step of the quantized model takes so much longer, at work."""

    def change(made: Any) -> None:
        step = made.decode_step

        def longer() -> Any:
            start = perf_counter()
            out = step()
            end = perf_counter() + share * (perf_counter() - start)
            while perf_counter() < end:
                pass
            return out

        made.decode_step = longer

    served(change)


@fault("slower-5", "decoding takes 5 % longer", "decode")
def slower_5() -> None:
    slower(0.05)


@fault("slower-10", "decoding takes 10 % longer", "decode")
def slower_10() -> None:
    slower(0.10)


@fault("slower-20", "decoding takes 20 % longer", "decode")
def slower_20() -> None:
    slower(0.20)


# --- in the text, and in what is remembered ---------------------------------------------------


@fault("shifted", "the quantized model is given tokens shifted by one", "perplexity")
def shifted() -> None:
    def change(made: Any) -> None:
        logits = made.logits
        made.logits = lambda tokens: logits(tokens.roll(1, dims=-1))

    served(change)


@fault("text-cut", "every article is cut short after half of it", "perplexity")
def text_cut() -> None:
    shelf = import_module("bitgate.plugin.shelf")
    original = shelf.load_documents
    shelf.load_documents = lambda dataset: [text[: len(text) // 2] for text in original(dataset)]


def forget_the_weights() -> None:
    """The cache of the base's scores no longer asks which weights they are of."""
    from bitgate.measure.base import BaseModel

    original = BaseModel.__init__

    def init(self: Any, module: Any, execution: Any, fingerprint: str) -> None:
        original(self, module, execution, "any")

    BaseModel.__init__ = init


@fault("stale-base", "scores of the base are read that another revision left", "perplexity")
def stale_base() -> None:
    forget_the_weights()


@fault("other-revision", "leaves the scores of another revision for stale-base", "perplexity")
def other_revision() -> None:
    shelf = import_module("bitgate.plugin.shelf")
    forget_the_weights()
    original = shelf.load_model

    def load_model(*args: Any, **options: Any) -> Any:
        import torch

        loaded = original(*args, **options)
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in loaded.module.parameters():
                weight.mul_(1 + 0.01 * torch.randn(weight.shape, generator=noise))
        return loaded

    shelf.load_model = load_model
