"""The kernels that execute packed weights, and the choice among them.

A kernel is a module with the names of `Kernel` below. `dequantize` is the reference: it is the
quantization method's own layer, so it has no module here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

from bitgate.kernels.affine import Affine, Grouping

#: name -> module, and the device types that it runs on
KERNELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cpu-int4": ("bitgate.kernels.cpu_int4", ("cpu",)),
}
REFERENCE = "dequantize"
NAMES = (*KERNELS, REFERENCE)
DEVICES = ("cpu", "cuda")  #: those whose time can be taken: speed.py waits for them


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
    return import_module(KERNELS[name][0])


def choose(wanted: str, device: str, layers: Mapping[str, Grouping]) -> str:
    """The kernel that serves all layers, given by name, on `device`.

    `auto` takes the first packed kernel made for the device that takes every layer, else the
    reference. A kernel forced by name that cannot serve is an error: never a silent fallback.
    """
    device_type = device.split(":")[0]
    if wanted == REFERENCE:
        return REFERENCE
    if wanted != "auto":
        if wanted not in KERNELS:
            raise KernelError(f"no kernel is called {wanted!r}; there is {', '.join(NAMES)}")
        if device_type not in KERNELS[wanted][1]:
            raise KernelError(f"kernel {wanted} does not run on {device}")
        for name, grouping in layers.items():
            if reason := kernel(wanted).refuses(grouping):
                raise KernelError(f"kernel {wanted} cannot take {name}, {grouping}: {reason}")
        return wanted
    for name, (_, devices) in KERNELS.items():
        if device_type in devices and all(
            kernel(name).refuses(grouping) is None for grouping in layers.values()
        ):
            return name
    return REFERENCE
