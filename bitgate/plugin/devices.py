"""Which device each worker gets, and how many workers there are by default."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bitgate.plugin import benchmark
from bitgate.plugin.session import SESSION

VARIABLE = "CUDA_VISIBLE_DEVICES"


def pool(config: pytest.Config) -> list[str]:
    """The devices that workers are given; none on a machine without."""
    given = config.getoption("devices")
    text = os.environ.get(VARIABLE, "") if given is None else given
    return [device.strip() for device in text.split(",") if device.strip()]


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto` is a worker per device; without devices, xdist's own answer: one per core."""
    return len(pool(config)) or None


def refuse_too_many(config: pytest.Config) -> None:
    """More workers than devices would time each other's work."""
    devices = pool(config)
    workers = sum(spec.startswith("popen") for spec in config.getoption("tx", None) or [])
    if devices and workers > len(devices) and not config.getoption("share_devices"):
        raise pytest.UsageError(
            f"-n: {workers} workers for {len(devices)} devices ({', '.join(devices)}); use "
            f"-n {len(devices)}, name more with --devices, or give --share-devices"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """A device for each worker of this host, before its interpreter starts and imports torch; one
    that replaces a dead worker is started from the same spec, so it inherits the device."""
    devices = pool(config)
    mine = [spec for spec in specs if spec.popen and VARIABLE not in spec.env]
    for number, spec in enumerate(mine):
        if devices:
            spec.env[VARIABLE] = devices[number % len(devices)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Plain `-n` places whole cells, by model and by what they cost before."""
    if config.getoption("dist") == "load" and SESSION in config.stash:
        return benchmark.cell_scheduler(config, log, config.stash[SESSION].place)
    return None
