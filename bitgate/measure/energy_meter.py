"""What codecarbon says that a stretch of work took, and what that figure is: the one adapter to it.

Every private name of codecarbon's that Bitgate uses is here (but the file of its countries, which
catalog/energy.py reads), held by codecarbon >= 3.3 and tests/unit/test_energy_meter.py. It is used
offline: nothing is logged, written or sent, and what a user's own .codecarbon.config says is
overridden.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from time import perf_counter
from typing import Any, Literal

from bitgate.catalog.energy import EnergySettings
from bitgate.measure.measurement import MeasureError, UnavailableError

JOULES_PER_KWH = 3.6e6
#: seconds after which counters are read while work goes on: RAPL's begin anew after 65 kJ or more,
#: and two turns look like one; so 1 kW of one CPU is counted right, which none takes
READ_EVERY = 60.0
Source = Literal["counter", "readings", "model"]
#: codecarbon's CPUs that read a counter of the hardware, as they describe themselves
COUNTERS = {
    "CPU(Intel Rapl)": "RAPL",
    "CPU(Windows Emi)": "the Energy Meter Interface",
    "CPU(Intel Power Gadget)": "Intel Power Gadget",
}


@dataclass(frozen=True)
class Used:
    """What some work took. `modelled` says that no instrument was read, only constants and the
    time; `source` which, for a reader."""

    seconds: float
    kwh: float
    kg_co2eq: float
    source: str
    modelled: bool


@dataclass(frozen=True)
class Part:
    """What one part of the machine took, and how that is known."""

    name: Literal["CPU", "GPU", "RAM"]
    kwh: float
    source: Source
    how: str


class EnergyMeter:
    """One tracker for all that a process measures, as setting one up takes half a second."""

    def __init__(self, settings: EnergySettings, device: str) -> None:
        """Of the CPU and the memory, and of `device`, if it is an accelerator.

        Raises:
            UnavailableError: if nothing tells what `device` takes.
        """
        self.settings = settings
        self.device = device
        self.grams_per_kwh, self.mix = intensity(settings)
        if settings.pue != 1:  # which codecarbon multiplies everything by
            self.mix = f"all of it × {settings.pue:g} (PUE); {self.mix}"
        self._tracker = _tracker(settings, device, self.grams_per_kwh)
        self._count = 0
        # the first is slower: it reads what the electricity is made of
        _, data = self._track(lambda: None)
        _worker(parts_of(self._tracker, data), device)

    def measure(self, work: Callable[[], object]) -> Used:
        """Do it, and say what it took.

        Raises:
            MeasureError: if the instrument of the device at work says 0: that is an error, and no
                good result.
        """
        seconds, data = self._track(work)
        parts = parts_of(self._tracker, data)
        return used(parts, seconds, self.device, self.grams_per_kwh, self.mix)

    def _track(self, work: Callable[[], object]) -> tuple[float, Any]:
        """Seconds that it took, and what codecarbon says of it."""
        self._count += 1
        name = f"work-{self._count}"
        self._tracker.start_task(name)
        over = Event()
        reader = Thread(target=self._read_until, args=(over,), daemon=True)
        reader.start()
        start = perf_counter()
        try:
            work()
            _synchronize(self.device)
        finally:
            seconds = perf_counter() - start
            over.set()
            reader.join()
            data = self._tracker.stop_task(name)
        return seconds, data

    def _read_until(self, over: Event) -> None:
        """codecarbon adds up what it reads."""
        while not over.wait(READ_EVERY):
            self._tracker._measure_power_and_energy()


def used(
    parts: Sequence[Part], seconds: float, device: str, grams_per_kwh: float, mix: str
) -> Used:
    """The figure that the parts make.

    Where an instrument tells what the device at work took, it is the sum of what instruments tell,
    and says what it leaves out, an instrument that says 0 too; else the sum of everything, which
    then is modelled. So no figure is half measured.
    """
    own = _worker(parts, device)
    if own.source != "model" and not own.kwh > 0:
        raise MeasureError(
            f"energy: {own.how} says that {device} took {own.kwh:g} kWh in {seconds:.3g} s, which "
            "is an error of measurement: give the workload more `items`, and check that nvidia-smi "
            "or /sys/class/powercap tells the power used"
        )
    measured = own.source != "model"
    told_by_instruments = [part for part in parts if part.source != "model" and part.kwh > 0]
    modelled = [part for part in parts if part.source == "model"]
    counted = told_by_instruments if measured else modelled
    left_out = [part for part in parts if part not in counted]
    kwh = sum(part.kwh for part in counted)
    told = " + ".join(part.how for part in counted)
    if left_out:
        told += f"; without {', '.join(f'{part.how} ({part.kwh:.3g} kWh)' for part in left_out)}"
    kind = "measured" if measured else "modelled"
    return Used(
        seconds=seconds,
        kwh=kwh,
        kg_co2eq=kwh * grams_per_kwh / 1000,
        source=f"{kind}: {told}; {mix}",
        modelled=not measured,
    )


def _worker(parts: Sequence[Part], device: str) -> Part:
    """The part that does the work.

    Raises:
        UnavailableError: if nothing tells what it takes.
    """
    worker = "CPU" if device == "cpu" else "GPU"
    own = next((part for part in parts if part.name == worker), None)
    if own is None or (worker == "GPU" and own.source == "model"):
        raise UnavailableError(
            f"unavailable: nothing tells what {device} takes: codecarbon found no {worker}; a GPU "
            "needs its driver's nvidia-smi and nvidia-ml-py (amdsmi for AMD)"
        )
    return own


def intensity(settings: EnergySettings) -> tuple[float, str]:
    """Grams of CO2eq per kWh, and what they are of, for a reader."""
    if settings.grams_per_kwh is not None:
        return settings.grams_per_kwh, f"{settings.grams_per_kwh:g} g/kWh, as configured"
    with _Silence():
        from codecarbon.core.emissions import Emissions
        from codecarbon.core.units import Energy
        from codecarbon.external.geography import GeoMetadata
        from codecarbon.input import DataSource

        source = DataSource()
        if settings.country is None:
            world = float(source.get_carbon_intensity_per_source_data()["world_average"])
            return world, f"{world:g} g/kWh, the world's average"
        geo = GeoMetadata(country_iso_code=settings.country)
        kg = Emissions(source).get_country_emissions(Energy.from_energy(kWh=1), geo)
        return 1000 * float(kg), f"{1000 * float(kg):.0f} g/kWh, {settings.country}"


def _tracker(settings: EnergySettings, device: str, grams_per_kwh: float) -> Any:
    """Of this process alone where nothing counts: others share the machine.

    Raises:
        UnavailableError: if codecarbon does not find what it needs of the system, as /proc.
    """
    import psutil

    try:
        return _set_up(settings, device, grams_per_kwh)
    except (OSError, psutil.Error) as error:
        raise UnavailableError(
            f"unavailable: codecarbon cannot be set up: {type(error).__name__}: {error}"
        ) from None


def _set_up(settings: EnergySettings, device: str, grams_per_kwh: float) -> Any:
    with _Silence():
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.core.cpu import DEFAULT_POWER_PER_CORE
        from codecarbon.core.util import count_cpus
        from codecarbon.external.hardware import CPU, GPU

        tracker = OfflineEmissionsTracker(
            allow_multiple_runs=True,
            api_call_interval=-1,
            cloud_provider=None,
            cloud_region=None,
            country_2letter_iso_code=None,
            country_iso_code=None,
            electricitymaps_api_token=None,
            emissions_endpoint=None,
            force_carbon_intensity_g_co2e_kwh=grams_per_kwh,
            force_cpu_power=None,  # with one, no counter is looked for
            force_mode_cpu_load=False,
            force_ram_power=settings.ram_watts,
            gpu_ids=None,
            log_level="critical",
            logger_preamble="",
            measure_power_secs=3600.0,  # between tasks nothing is of interest
            output_handlers=[],
            output_methods=[],
            pue=settings.pue,
            rapl_include_dram=False,
            rapl_prefer_psys=False,
            region=None,
            tracking_mode="process",
            wue=0,
        )
        tracker._electricitymaps_api_token = None  # which a user's file may give under its old name
        tracker.get_detected_hardware()
    gpus = [part for part in tracker._hardware if isinstance(part, GPU)]
    for gpu in gpus:
        if device == "cpu" or not gpu.devices.devices:
            tracker._hardware.remove(gpu)
        else:
            gpu.gpu_ids = [same_gpu(device, _uuid(device), gpu.devices.get_gpu_static_info())]
    guessed = count_cpus() * DEFAULT_POWER_PER_CORE  # what it takes for a CPU that it does not know
    for part in tracker._hardware:
        if isinstance(part, CPU) and part.description() not in COUNTERS:
            if settings.cpu_watts is not None:
                part._tdp, part._is_generic_tdp = settings.cpu_watts, False
            elif part._tdp == guessed:
                part._is_generic_tdp = True
    return tracker


def _uuid(device: str) -> str:
    """Of an accelerator, as CUDA tells it."""
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)


def same_gpu(device: str, uuid: str, known: Sequence[Mapping[str, Any]]) -> int:
    """Where `device` stands among the GPUs that its driver tells, each with `uuid`, `gpu_index`.

    Their numbers do not say: CUDA's are by speed or by bus, of those that are visible.

    Raises:
        MeasureError: if it is none of them, as a share of a GPU is not (MIG).
    """
    for gpu in known:
        if _bare(gpu["uuid"]) == _bare(uuid):
            index: int = gpu["gpu_index"]
            return index
    told = ", ".join(gpu["uuid"] for gpu in known) or "no UUID"
    raise MeasureError(
        f"energy: {device} is {uuid} for CUDA, and its driver tells only {told}: what it takes is "
        "not known; leave the energy cases out with -m 'not energy'"
    )


def _bare(uuid: str) -> str:
    """CUDA leaves out the `GPU-` that NVML writes before it."""
    return uuid.lower().removeprefix("gpu-")


def parts_of(tracker: Any, data: Any) -> list[Part]:
    """What codecarbon has tracked, each part with its source."""
    return [_part(hardware, data, tracker._pue) for hardware in tracker._hardware]


def _part(hardware: Any, data: Any, pue: float) -> Part:
    match type(hardware).__name__:
        case "GPU":  # of which there is at least one: see `_set_up`
            devices = [d for d in hardware.devices.devices if d.gpu_index in hardware.gpu_ids]
            kind = "NVML" if "Nvidia" in type(devices[0]).__name__ else "the driver"
            if any(device._use_power_fallback for device in devices):
                return Part("GPU", data.gpu_energy, "readings", f"GPU by {kind}'s power readings")
            return Part("GPU", data.gpu_energy, "counter", f"GPU by {kind}'s counter")
        case "CPU" if (described := hardware.description()) in COUNTERS:
            how = f"CPU by {COUNTERS[described]}"
            return Part("CPU", data.cpu_energy, "counter", how)
        case "CPU":
            watts = f"{hardware._tdp:g} W"
            guess = " (a guess: codecarbon does not know it)" if hardware._is_generic_tdp else ""
            return Part("CPU", data.cpu_energy, "model", f"CPU {watts}{guess} × its load")
        case "RAM":
            watts = f"{data.ram_power / pue:.3g} W"
            return Part("RAM", data.ram_energy, "model", f"RAM {watts}, constant")
    # of machines whose chips have meters of their own: Apple's, a Raspberry Pi
    name: Literal["CPU", "GPU", "RAM"] = getattr(hardware, "chip_part", "CPU")
    kwh = {"CPU": data.cpu_energy, "GPU": data.gpu_energy, "RAM": data.ram_energy}[name]
    return Part(name, kwh, "readings", f"{name} by {type(hardware).__name__}'s readings")


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


class _Silence:
    """codecarbon logs while it is imported and set up, whatever level it is then told."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL + 1)
