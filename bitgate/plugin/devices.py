"""Which device each worker gets, and how many workers there are by default."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bitgate.plugin import distribution

VARIABLE = "CUDA_VISIBLE_DEVICES"


def pool(config: pytest.Config) -> list[str]:
    """The devices of this host that workers are given; none if they work on its CPU. An empty
    CUDA_VISIBLE_DEVICES means none, too; without it, all that there are."""
    if config.getoption("device") == "cpu":
        return []
    given = config.getoption("devices")
    return visible() if given is None else _ids(given)


def on_accelerator(config: pytest.Config) -> bool:
    """Whether this process will measure on one, as far as can be known before torch is imported."""
    wanted: str = config.getoption("device")
    if wanted == "auto":
        # the variable alone is no proof: it may be set on a machine without any
        return bool(visible() and installed())
    return wanted.startswith("cuda")


def visible() -> list[str]:
    """The devices that CUDA would show to this process."""
    text = os.environ.get(VARIABLE)
    return list(installed()) if text is None else _ids(text)


@cache
def installed() -> tuple[str, ...]:
    """The GPUs of this host, and instead of each that is divided (MIG) its instances, as
    `nvidia-smi -L` lists them; none if torch is built without CUDA. By UUID: CUDA numbers devices
    in another order than the driver."""
    if not torch_has_cuda():
        return ()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):  # no driver, or none that works
        return ()
    found: list[str] = []
    for kind, uuid in re.findall(r"\(UUID: ((?:GPU|MIG)-)([^)\s]+)\)", listed):
        if kind == "MIG-" and found and found[-1].startswith("GPU-"):
            found.pop()  # the one that this is a part of
        found.append(kind + uuid)
    return tuple(found)


def torch_has_cuda() -> bool:
    """Whether it was built with it, without importing it."""
    spec = find_spec("torch")
    places = (spec and spec.submodule_search_locations) or ()
    return any(any(Path(place, "lib").glob("*torch_cuda.*")) for place in places)


def _ids(text: str) -> list[str]:
    """Comma-separated; as CUDA has it, -1 ends the list."""
    ids = [device.strip() for device in text.split(",") if device.strip()]
    return ids[: ids.index("-1")] if "-1" in ids else ids


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto` is a worker per device; without devices, xdist's own answer: one per core."""
    return len(pool(config)) or None


def refuse_to_share(config: pytest.Config) -> None:
    """Workers that share a device would time each other's work."""
    if distribution.is_worker(config) or not distribution.is_distributed(config):
        return
    devices, wanted = pool(config), config.getoption("device")
    specs = distribution.local_workers(config)
    named = [device for spec in specs for device in _ids(spec.env.get(VARIABLE, ""))]
    unnamed = sum(VARIABLE not in spec.env for spec in specs)
    if devices and unnamed and re.fullmatch(r"cuda:0*[1-9]\d*", wanted):
        number = wanted.partition(":")[2]
        raise pytest.UsageError(
            f"--device {wanted}: a worker sees one device, which it calls cuda:0; give --device "
            f"cuda --devices {number}"
        )
    if config.getoption("share_devices") or wanted == "cpu":
        return
    for source, ids in (("--devices", devices), (f"--tx, env:{VARIABLE}=", named)):
        if twice := sorted({device for device in ids if ids.count(device) > 1}):
            raise pytest.UsageError(
                f"{source}: {', '.join(twice)} is there twice, and workers would share it; name "
                "each once, or give --share-devices"
            )
    if devices and named and unnamed:
        raise pytest.UsageError(
            f"--tx: {unnamed} workers of this host name no device and others do; give each its own "
            f"with //env:{VARIABLE}=, or none"
        )
    if devices and unnamed > len(devices):
        raise pytest.UsageError(
            f"-n: {unnamed} workers for {len(devices)} devices ({', '.join(devices)}); use "
            f"-n {len(devices)}, name more with --devices, measure on the CPU with --device cpu, "
            "or give --share-devices"
        )
    if not devices and unnamed > 1 and wanted != "auto":
        raise pytest.UsageError(
            f"--device {wanted}: {unnamed} workers, and no device is known here ({VARIABLE} and "
            "nvidia-smi name none); name them with --devices, or give --share-devices"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """A device for each worker of this host, before its interpreter starts and imports torch; one
    that replaces a dead worker is started from the same spec, so it inherits the device."""
    devices = pool(config)
    mine = [
        spec
        for spec in specs
        if distribution.name_of_host(spec) is None and VARIABLE not in spec.env
    ]
    for number, spec in enumerate(mine):
        if devices:
            spec.env[VARIABLE] = devices[number % len(devices)]
