"""The shapes of a model's tensors, all that a size prediction needs, and what model it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cache
from typing import TYPE_CHECKING, Any

from bitgate.quantize.batch_norm import followers
from bitgate.quantize.file_sizes import escaped
from bitgate.quantize.key_values import CacheShape, caches
from bitgate.sources.architecture import config_text, positions, task_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LinearShape:
    """One linear layer."""

    name: str
    out_features: int
    in_features: int
    bias: bool


@dataclass(frozen=True)
class Patches:
    """Which patches of its input a 2-d convolution sees, in torch's terms: height, then width;
    padding may be a word."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Patches:
        def pair(of: tuple[int, ...]) -> tuple[int, int]:
            height, width = of
            return height, width

        padding = layer.padding if isinstance(layer.padding, str) else pair(layer.padding)
        size, stride, dilation = map(pair, (layer.kernel_size, layer.stride, layer.dilation))
        return cls(size, stride, padding, dilation, layer.groups)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `torch.nn.functional.conv2d`, but for the tensors."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


@dataclass(frozen=True)
class ConvolutionShape:
    """One 2-d convolution, its weight as a matrix: a row per output channel."""

    name: str
    out_features: int
    in_features: int  #: channels of a group x height x width of the patch
    bias: bool
    place: int  #: how many linear layers come before it
    patches: Patches
    norm: str | None = None  #: the batch norm that can be folded into it
    norm_elements: int = 0
    norm_fixed: int = 0  #: bytes of its counter


@dataclass(frozen=True)
class TensorShape:
    """A tensor that belongs to no linear layer."""

    name: str
    shape: tuple[int, ...]
    integer: str | None = None  #: its type, as safetensors calls it, where that is no float


@dataclass(frozen=True)
class FileShapes:
    """What else a saved file holds, so that its size can be told to the byte."""

    #: parameters and persistent buffers outside of linear layers, tied ones once
    tensors: tuple[TensorShape, ...]
    #: bytes of the configuration, as JSON within JSON; they differ with transformers' releases
    config: int = field(compare=False)
    task: str
    #: linear layers whose bias is one of `tensors`, too, as BERT's head has it
    shared_biases: tuple[str, ...] = ()
    #: of the floating-point numbers; None where no weights say it
    dtype: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ModelShapes:
    """Linear layers by name, the head among them, and the elements of everything else.

    `others` counts the elements of all other parameters and persistent buffers once, `transient`
    those of buffers that are not saved; `tied` says that the head's weight is also the embedding,
    which `others` then counts. It counts `convolutions` too, which few methods quantize. `fixed` is
    the bytes of persistent buffers of whole numbers, such as the counters of batch norms, which
    stay what they are in a model of any dtype; `others` is without them. `buffers` counts those of
    its elements that are no parameters, such as the means of batch norms.
    """

    linears: tuple[LinearShape, ...]
    others: int
    transient: int
    head: str | None
    tied: bool
    convolutions: tuple[ConvolutionShape, ...] = ()
    #: the architecture, as transformers calls it; None where nothing says it
    model_type: str | None = None
    #: None where nothing says it, as in a lock written before it was asked for
    file: FileShapes | None = None
    #: what attention keeps of tokens, nothing of a model that generates none; None where nothing
    #: says it
    cache: tuple[CacheShape, ...] | None = None
    fixed: int = 0
    buffers: int = 0
    #: how many tokens it can tell the places of; None for any number, or where nothing says it
    positions: int | None = None

    @property
    def parameters(self) -> int:
        """Their elements, tied ones once."""
        return self.left(()) - self.buffers

    @property
    def linear_parameters(self) -> int:
        """Elements of the weights of all linear layers."""
        return sum(linear.out_features * linear.in_features for linear in self.linears)

    def in_dtype(self, dtype: str) -> ModelShapes:
        """The same model, its floating-point numbers in a dtype, by torch's name: types of as many
        bytes have names of different lengths in a file's header."""
        return self if self.file is None else replace(self, file=replace(self.file, dtype=dtype))

    def left(self, quantized: Collection[str]) -> int:
        """Elements of all that stays as it is where linear layers of these names are quantized,
        their biases too. A tied head is one tensor with the embedding until it is quantized; then
        the embedding stays beside it."""
        weights = (
            linear.out_features * linear.in_features
            for linear in self.linears
            if linear.name not in quantized and not (linear.name == self.head and self.tied)
        )
        biases = (linear.out_features for linear in self.linears if linear.bias)
        return self.others + sum(weights) + sum(biases)

    def select(self, globs: tuple[str, ...]) -> tuple[LinearShape, ...]:
        """Linear layers whose name matches a glob, without the head."""
        fits = _any_of(globs)
        return tuple(
            linear for linear in self.linears if linear.name != self.head and fits(linear.name)
        )

    def select_with_convolutions(
        self, globs: tuple[str, ...]
    ) -> tuple[LinearShape | ConvolutionShape, ...]:
        """Convolutions too, each at its place in the model."""
        fits = _any_of(globs)
        wanted = {linear.name for linear in self.select(globs)}
        found: list[LinearShape | ConvolutionShape] = []
        for place in range(len(self.linears) + 1):
            found += [
                convolution
                for convolution in self.convolutions
                if convolution.place == place and fits(convolution.name)
            ]
            found += [linear for linear in self.linears[place:][:1] if linear.name in wanted]
        return tuple(found)


@cache
def _any_of(globs: tuple[str, ...]) -> Callable[[str], object]:
    """Whether a name fits any of the globs: collection asks of every layer for every recipe."""
    return re.compile("|".join(map(translate, globs)) or "(?!)").match


def shapes_of(module: nn.Module) -> ModelShapes:
    """The shapes of a model, which may be on the meta device."""
    from torch import nn

    head = head_of(module)
    linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    tied = head is not None and id(linears[head].weight) in embeddings
    of_embedding = id(linears[head].weight) if head is not None and tied else None
    in_linears = {id(p) for m in linears.values() for p in m.parameters()} - {of_embedding}
    others = {id(p): p.numel() for p in module.parameters() if id(p) not in in_linears}
    transient = fixed = buffers = 0
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name in part._non_persistent_buffers_set:
                transient += buffer.numel() * buffer.element_size()
            elif not buffer.is_floating_point():
                fixed += buffer.numel() * buffer.element_size()
            else:
                buffers += 0 if id(buffer) in others else buffer.numel()
                others[id(buffer)] = buffer.numel()
    return ModelShapes(
        linears=tuple(
            LinearShape(name, m.out_features, m.in_features, m.bias is not None)
            for name, m in linears.items()
        ),
        others=sum(others.values()),
        transient=transient,
        head=head,
        tied=tied,
        convolutions=tuple(_convolutions(module)),
        model_type=getattr(getattr(module, "config", None), "model_type", None),
        file=_file(module, linears.keys()),
        cache=_cache(module),
        fixed=fixed,
        buffers=buffers,
        positions=positions(module) if hasattr(module, "config") else None,
    )


def _cache(module: nn.Module) -> tuple[CacheShape, ...] | None:
    if not hasattr(module, "config"):
        return None
    return caches(module.config) if task_of(module) == "causal-lm" else ()


def _file(module: nn.Module, linears: Collection[str]) -> FileShapes | None:
    if not hasattr(module, "config"):  # a module of one's own, which is never saved
        return None
    found: dict[int, TensorShape] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name.rpartition(".")[0] not in linears:
            integer = None if tensor.is_floating_point() else INTEGERS[str(tensor.dtype)]
            found.setdefault(id(tensor), TensorShape(name, tuple(tensor.shape), integer))
    biases = {name: state.get(f"{name}.bias") for name in linears}
    floats = (p.dtype for p in module.parameters() if p.is_floating_point() and not p.is_meta)
    dtype = next(floats, None)
    return FileShapes(
        tensors=tuple(found.values()),
        config=escaped(config_text(module)),
        task=task_of(module),
        shared_biases=tuple(name for name, bias in biases.items() if id(bias) in found),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
    )


#: torch's types and safetensors'
INTEGERS = {
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def _convolutions(module: nn.Module) -> Iterator[ConvolutionShape]:
    from torch import nn

    norms, place = followers(module), 0
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            place += 1
        elif isinstance(part, nn.Conv2d):
            norm = norms.get(name)
            state = module.get_submodule(norm).state_dict().values() if norm else ()
            whole = [tensor for tensor in state if not tensor.is_floating_point()]
            yield ConvolutionShape(
                name=name,
                out_features=part.out_channels,
                in_features=part.weight[0].numel(),
                bias=part.bias is not None,
                place=place,
                patches=Patches.of(part),
                norm=norm,
                norm_elements=sum(t.numel() for t in state if t.is_floating_point()),
                norm_fixed=sum(tensor.numel() * tensor.element_size() for tensor in whole),
            )


def head_of(module: nn.Module) -> str | None:
    """The name of the linear layer that turns the last hidden state into logits, of
    tokens or of classes."""
    get = getattr(module, "get_output_embeddings", None)
    layer = get() if get is not None else None
    named = dict(module.named_modules())
    if layer is None:
        return next((n for n in CLASSIFIERS if _classifies(named.get(n), module)), None)
    return next((name for name, m in named.items() if m is layer), None)


def _classifies(layer: nn.Module | None, module: nn.Module) -> bool:
    """Whether a layer gives as many numbers as the model has classes."""
    from torch import nn

    classes = getattr(getattr(module, "config", None), "num_labels", None)
    return isinstance(layer, nn.Linear) and layer.out_features == classes


#: what the last layer of a classifier is called, by transformers and by timm inside of it
CLASSIFIERS = ("score", "classifier", "timm_model.head", "timm_model.classifier", "timm_model.fc")
