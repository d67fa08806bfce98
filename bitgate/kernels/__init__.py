"""The kernels that execute packed weights, and the choice among them.

A kernel module has two functions: `accepts(shape, weight)` says why it cannot take a layer (or
None), and `pack(weight, bias)` returns the module that executes it. `dequantize` is the reference:
it is the quantization method's own layer, so it has no module here.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Protocol

from bitgate.kernels.affine import Affine, Grouping

#: name -> module, and the device types that it runs on
KERNELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cpu-int4": ("bitgate.kernels.cpu_int4", ("cpu",)),
}
REFERENCE = "dequantize"
NAMES = (*KERNELS, REFERENCE)
DEVICES = ("cpu", "cuda", "mps", "xpu")


class KernelError(RuntimeError):
    """A kernel was asked for that cannot execute these layers here."""


class Kernel(Protocol):
    """What a kernel module offers."""

    LAYER: type

    def refuses(self, grouping: Grouping) -> str | None:
        """Why a layer grouped like this cannot be packed; None if it can."""

    def pack(self, weight: Affine, bias: object) -> object:
        """The torch module that executes these weights."""

    def packed_bytes(self, grouping: Grouping) -> int:
        """Bytes of its buffers, without the bias."""


def kernel(name: str) -> Kernel:
    """The kernel module called `name`."""
    return import_module(KERNELS[name][0])  # type: ignore[return-value]


def choose(wanted: str, device: str, groupings: Iterable[Grouping]) -> str:
    """The kernel that serves all layers on `device`.

    `auto` takes the first packed kernel made for the device that takes every layer, else the
    reference. A kernel forced by name that cannot serve is an error: never a silent fallback.
    """
    layers = list(groupings)
    device_type = device.split(":")[0]
    if wanted == REFERENCE:
        return REFERENCE
    if wanted != "auto":
        if wanted not in KERNELS:
            raise KernelError(f"no kernel is called {wanted!r}; there is {', '.join(NAMES)}")
        if device_type not in KERNELS[wanted][1]:
            raise KernelError(f"kernel {wanted} does not run on {device}")
        for grouping in layers:
            if reason := kernel(wanted).refuses(grouping):
                raise KernelError(f"kernel {wanted} cannot take a layer {grouping}: {reason}")
        return wanted
    for name, (_, devices) in KERNELS.items():
        if device_type in devices and all(kernel(name).refuses(g) is None for g in layers):
            return name
    return REFERENCE
