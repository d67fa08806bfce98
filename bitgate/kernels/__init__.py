"""The kernels that execute packed weights, and the choice among them.

A kernel is a module with the names of `Kernel` below. `dequantize` is the reference: it is the
quantization method's own layer, so it has no module here. Where the layers of one model are served
by several, their names are joined, `cpu-int4+cpu-int4x2`: one name, for which gates have globs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import combinations
from typing import Protocol

from bitgate.catalog import nearest
from bitgate.kernels.affine import Affine, Grouping
from bitgate.kernels.extra import Extra

#: name -> module, and the device types that it runs on
KERNELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cpu-int4": ("bitgate.kernels.cpu_int4", ("cpu",)),
    "cpu-int8": ("bitgate.kernels.cpu_int8", ("cpu",)),
    "cpu-int4x2": ("bitgate.kernels.cpu_int4x2", ("cpu",)),
    "gemlite": ("bitgate.kernels.gemlite", ("cuda",)),
}
#: those that `auto` takes only where layers differ: on many rows, as when text is scored, this one
#: is half as fast as the reference, on which recipes of 8 bits alone are measured
AMONG_OTHERS = ("cpu-int4x2",)
#: what a kernel needs beside Bitgate itself
EXTRAS = {"gemlite": Extra("gpu", ("gemlite",))}
REFERENCE = "dequantize"
NAMES = (*KERNELS, REFERENCE)
JOINT = "+"
DEVICES = ("cpu", "cuda")  #: those whose time can be taken: speed.py waits for them


class KernelError(RuntimeError):
    """A kernel was asked for that cannot execute these layers here."""


class NotHereError(KernelError):
    """The kernel does not run on this device or machine, whatever the layers are."""


class Kernel(Protocol):
    """What a kernel module offers. It is imported during collection, so torch is imported inside
    the functions, and its layer has a module of its own."""

    def refuses(self, grouping: Grouping) -> str | None:
        """Why a layer grouped like this cannot be packed; None if it can."""

    def layer_class(self) -> type:
        """The class of the modules that `pack` makes."""

    def pack(self, weight: Affine, bias: object) -> object:
        """The torch module that executes these weights."""

    def packed_bytes(self, grouping: Grouping) -> int:
        """Bytes of its buffers, without the bias."""


def kernel(name: str) -> Kernel:
    """The kernel module called `name`."""
    return import_module(KERNELS[name][0])


def named(name: str, known: Iterable[str]) -> str:
    """A kernel's name as a recipe gives it: `auto`, or one of those known.

    Raises:
        ValueError: if it is another.
    """
    known = ("auto", *known)
    if name not in known:
        raise ValueError(f"no kernel is called {name!r}; {nearest(name, known)}")
    return name


def missing(name: str) -> str | None:
    """What to say where a kernel's library is not installed; None where nothing is missing."""
    extra = EXTRAS.get(name)
    reason = extra.missing() if extra else None
    return f"kernel {name}: {reason}" if reason else None


def passed_over(device: str) -> list[str]:
    """What `auto` cannot choose on this device for want of a library, to be told to the user."""
    device_type = device.split(":")[0]
    said = (missing(name) for name, (_, devices) in KERNELS.items() if device_type in devices)
    return [reason for reason in said if reason]


def choose(wanted: str, device: str, layers: Mapping[str, Grouping]) -> str:
    """The kernel that serves all layers, given by name, on `device`.

    `auto` takes the first packed kernel made for the device that is installed (`passed_over` tells
    which are not) and takes every layer, else the reference. A kernel forced by name that cannot
    serve is an error: never a silent fallback.

    Raises:
        KernelError: if it cannot take a layer, which no device and no library would change.
        NotHereError: if it could, but not on this device, or its library is not installed.
    """
    device_type = device.split(":")[0]
    if wanted == REFERENCE:
        return REFERENCE
    if wanted != "auto":
        if wanted not in KERNELS:
            raise KernelError(f"no kernel is called {wanted!r}; there is {', '.join(NAMES)}")
        # layers first: whether they fit does not depend on where this is asked
        refuses = kernel(wanted).refuses
        for name, grouping in layers.items():
            if reason := refuses(grouping):
                raise KernelError(f"kernel {wanted} cannot take {name}, {grouping}: {reason}")
        if device_type not in KERNELS[wanted][1]:
            raise NotHereError(f"kernel {wanted} does not run on {device}")
        if reason := missing(wanted):
            raise NotHereError(reason)
        return wanted
    for name in _made_for(device):
        if name not in AMONG_OTHERS:
            refuses = kernel(name).refuses
            if all(refuses(grouping) is None for grouping in layers.values()):
                return name
    return REFERENCE


def choose_each(device: str, layers: Mapping[str, Grouping]) -> str:
    """The kernels that serve layers of different kinds on `device`, joined.

    Each layer gets the first packed kernel made for the device that takes it, or else the
    reference; `serving` tells which.
    """
    everything = joined([*_made_for(device), REFERENCE])
    return joined(serving(everything, grouping) for grouping in layers.values())


def serving(names: str, grouping: Grouping) -> str:
    """Of kernels that were joined, the one that serves a layer."""
    *first, last = names.split(JOINT)
    for name in first:
        if kernel(name).refuses(grouping) is None:
            return name
    return last


def joined(names: Iterable[str]) -> str:
    """One name for the kernels that serve a model, in the order in which they are asked."""
    wanted = set(names)
    return JOINT.join(name for name in NAMES if name in wanted)


def joint_names() -> tuple[str, ...]:
    """Every name that `joined` makes of several kernels."""
    several = range(2, len(NAMES) + 1)
    return tuple(JOINT.join(some) for count in several for some in combinations(NAMES, count))


def _made_for(device: str) -> list[str]:
    device_type = device.split(":")[0]
    return [
        name
        for name, (_, types) in KERNELS.items()
        if device_type in types and missing(name) is None
    ]
