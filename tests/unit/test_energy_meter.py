"""What work took: by constants, as computed by hand; nothing logged, written or sent; and what
makes a figure measured, modelled or wrong."""

import os
import socket
import subprocess
import sys
from threading import Event
from time import monotonic, process_time, sleep

import pytest

from bitgate.catalog import CatalogError
from bitgate.catalog.energy import EnergySettings, _countries, read_energy
from bitgate.measure.energy_meter import COUNTERS, EnergyMeter, Part, intensity, used
from bitgate.measure.measurement import MeasureError, UnavailableError

MIX = "56 g/kWh, FRA"


def busy(seconds):
    end = monotonic() + seconds
    while monotonic() < end:
        pass


# --- by hand -------------------------------------------------------------------------------


def test_constant_memory_is_power_times_time():
    settings = EnergySettings(ram_watts=30.0, cpu_watts=1e-6, grams_per_kwh=500.0)
    meter, start = EnergyMeter(settings, "cpu"), monotonic()
    found = meter.measure(lambda: sleep(1.0))
    assert found.kwh == pytest.approx(30 * found.seconds / 3.6e6, rel=0.15)
    assert 1.0 <= found.seconds <= monotonic() - start
    assert found.kg_co2eq == pytest.approx(found.kwh * 0.5)


def test_a_cpu_takes_its_power_for_the_share_of_its_cores_that_worked():
    meter = EnergyMeter(EnergySettings(ram_watts=1e-6, cpu_watts=100.0), "cpu")
    before = process_time()
    found = meter.measure(lambda: busy(1.0))
    worked = process_time() - before
    assert found.kwh == pytest.approx(100 * worked / os.cpu_count() / 3.6e6, rel=0.2)


def test_a_data_centre_multiplies_all():
    plain, doubled = (
        EnergyMeter(EnergySettings(ram_watts=30.0, cpu_watts=1e-6, pue=pue), "cpu").measure(
            lambda: sleep(0.6)
        )
        for pue in (1.0, 2.0)
    )
    assert doubled.kwh / doubled.seconds == pytest.approx(2 * plain.kwh / plain.seconds, rel=0.2)


def test_the_constants_stand_beside_the_figure():
    settings = EnergySettings(ram_watts=30.0, cpu_watts=65.0, grams_per_kwh=56.0)
    found = EnergyMeter(settings, "cpu").measure(lambda: sleep(0.1))
    assert found.modelled
    assert found.source == (
        "modelled: RAM 30 W, constant + CPU 65 W × its load; 56 g/kWh, as configured"
    )


def test_the_constants_beside_a_figure_are_those_before_the_data_centres_share():
    settings = EnergySettings(ram_watts=30.0, cpu_watts=65.0, grams_per_kwh=56.0, pue=10.0)
    assert EnergyMeter(settings, "cpu").measure(lambda: sleep(0.2)).source == (
        "modelled: RAM 30 W, constant + CPU 65 W × its load; "
        "all of it × 10 (PUE); 56 g/kWh, as configured"
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_guessed_cpu_is_called_one(monkeypatch, known):
    from codecarbon.core import cpu, hardware_cache

    watts = 65.0 if known else None
    monkeypatch.setattr(cpu.TDP, "_get_cpu_power_from_registry", lambda self, model: watts)
    hardware_cache.clear_cache()
    source = EnergyMeter(EnergySettings(ram_watts=30.0), "cpu").measure(lambda: None).source
    hardware_cache.clear_cache()
    assert ("CPU 65 W × its load" in source) == known
    assert (" W (a guess: codecarbon does not know it) × its load" in source) == (not known)


def test_what_fails_ends_its_stretch():
    meter = EnergyMeter(EnergySettings(ram_watts=30.0, cpu_watts=1e-6), "cpu")
    with pytest.raises(ZeroDivisionError):
        meter.measure(lambda: 1 / 0)
    assert meter.measure(lambda: sleep(0.2)).seconds < 1


# --- emissions -----------------------------------------------------------------------------


def test_the_mix_of_a_country():
    grams, of = intensity(EnergySettings(country="FRA"))
    assert 20 < grams < 120  # mostly nuclear
    assert of == f"{grams:.0f} g/kWh, FRA"
    assert intensity(EnergySettings()) == (475, "475 g/kWh, the world's average")


def test_the_countries_are_those_that_codecarbon_knows():
    from codecarbon.input import DataSource

    assert _countries() == list(DataSource().get_global_energy_mix_data())


# --- what a figure is ----------------------------------------------------------------------

GPU = Part("GPU", 3e-4, "counter", "GPU by NVML's counter")
CPU = Part("CPU", 1e-4, "counter", "CPU by RAPL")
LOAD = Part("CPU", 1e-4, "model", "CPU 65 W × its load")
RAM = Part("RAM", 2e-5, "model", "RAM 20 W, constant")


def test_instruments_are_summed_and_models_left_out():
    found = used([RAM, CPU, GPU], 10, "cuda:0", 56, MIX)
    assert found.kwh == pytest.approx(4e-4)
    assert not found.modelled
    assert found.source == (
        "measured: CPU by RAPL + GPU by NVML's counter; without RAM 20 W, constant (2e-05 kWh); "
        f"{MIX}"
    )
    assert used([RAM, LOAD, GPU], 10, "cuda:0", 56, MIX).kwh == pytest.approx(3e-4)
    assert used([RAM, CPU], 10, "cpu", 56, MIX).kwh == pytest.approx(1e-4)


def test_without_an_instrument_all_is_modelled():
    found = used([RAM, LOAD], 10, "cpu", 56, MIX)
    assert found.modelled
    assert found.kwh == pytest.approx(1.2e-4)


@pytest.mark.parametrize("source", ["counter", "readings"])
def test_a_gpu_that_takes_nothing_is_an_error(source):
    nothing = Part("GPU", 0.0, source, "GPU by NVML's counter")
    with pytest.raises(MeasureError, match=r"took 0 kWh in 2.5 s, which is an error of measure"):
        used([RAM, LOAD, nothing], 2.5, "cuda:0", 56, MIX)


def test_a_gpu_that_nobody_watches_is_unavailable():
    with pytest.raises(UnavailableError, match="unavailable: nothing tells what cuda:0 takes"):
        used([RAM, LOAD], 2.5, "cuda:0", 56, MIX)


def test_a_gpu_that_nobody_watches_is_said_before_anything_is_measured(monkeypatch):
    from codecarbon.core import gpu, hardware_cache

    monkeypatch.setattr("bitgate.measure.energy_meter._synchronize", lambda device: None)
    for found in (False, True):  # with the driver's programs, but without nvidia-ml-py
        monkeypatch.setattr(gpu, "is_nvidia_system", lambda found=found: found)
        hardware_cache.clear_cache()
        with pytest.raises(UnavailableError, match="nothing tells what cuda:0 takes"):
            EnergyMeter(EnergySettings(), "cuda:0")
    hardware_cache.clear_cache()


def test_a_counter_of_the_cpu_that_stands_still_is_an_error():
    with pytest.raises(MeasureError, match="error of measurement"):
        used([RAM, Part("CPU", 0.0, "counter", "CPU by RAPL")], 2.5, "cpu", 56, MIX)


def test_a_counter_of_the_cpu_that_stands_still_beside_a_gpu_is_left_out():
    found = used([RAM, Part("CPU", 0.0, "counter", "CPU by RAPL"), GPU], 10, "cuda:0", 56, MIX)
    assert found.kwh == pytest.approx(3e-4)
    assert found.source == (
        "measured: GPU by NVML's counter; without RAM 20 W, constant (2e-05 kWh), "
        f"CPU by RAPL (0 kWh); {MIX}"
    )


def test_parts_are_named_by_their_instrument():
    from types import SimpleNamespace

    from bitgate.measure.energy_meter import parts_of

    class NvidiaGPUDevice(SimpleNamespace):
        pass

    class GPU(SimpleNamespace):
        pass

    class CPU(SimpleNamespace):
        pass

    data = SimpleNamespace(gpu_energy=3e-4, cpu_energy=1e-4, ram_energy=0, ram_power=10)
    device = NvidiaGPUDevice(gpu_index=1, _use_power_fallback=False)
    gpu = GPU(devices=SimpleNamespace(devices=[device]), gpu_ids=[1])
    tracker = SimpleNamespace(_hardware=[gpu, CPU(description=lambda: "CPU(Intel Rapl)")], _pue=1)
    assert parts_of(tracker, data) == [
        Part("GPU", 3e-4, "counter", "GPU by NVML's counter"),
        Part("CPU", 1e-4, "counter", "CPU by RAPL"),
    ]
    device._use_power_fallback = True
    assert parts_of(tracker, data)[0].source == "readings"


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """A machine whose CPU has a counter of 100 J; a function that sets it, in J."""
    from codecarbon.core import hardware_cache
    from codecarbon.core.resource_tracker import ResourceTracker
    from codecarbon.external.hardware import CPU

    domain = tmp_path / "rapl" / "intel-rapl:0"
    domain.mkdir(parents=True)
    (domain / "name").write_text("package-0")
    (domain / "max_energy_range_uj").write_text("100000000")

    def count(joules):
        (domain / "next").write_text(f"{1e6 * joules:.0f}")
        (domain / "next").replace(domain / "energy_uj")

    def found(tracker):
        cpu = CPU("", "intel_rapl", "a CPU", 85, str(domain.parent), tracking_mode="process")
        tracker.tracker._hardware.append(cpu)
        return True

    count(0)
    monkeypatch.setattr(ResourceTracker, "_try_platform_cpu_backend", found)
    hardware_cache.clear_cache()
    yield count
    hardware_cache.clear_cache()


def test_a_counter_is_read_whatever_constants_are_configured(rapl):
    meter = EnergyMeter(EnergySettings(cpu_watts=65.0), "cpu")
    found = meter.measure(lambda: rapl(36.0))
    assert found.kwh == pytest.approx(1e-5)
    assert found.source.startswith("measured: CPU by RAPL; without RAM")


def test_a_counter_that_begins_anew_several_times_is_read_in_between(rapl, monkeypatch):
    monkeypatch.setattr("bitgate.measure.energy_meter.READ_EVERY", 0.05)

    meter, seen = EnergyMeter(EnergySettings(), "cpu"), Event()
    read = meter._tracker._measure_power_and_energy
    monkeypatch.setattr(meter._tracker, "_measure_power_and_energy", lambda: (read(), seen.set()))

    def work():
        for joules in (90, 70, 50, 30):  # of 100: 330 J in all
            rapl(joules)
            for _ in range(2):  # the first may have begun before
                seen.clear()
                assert seen.wait(60)

    found = meter.measure(work)
    assert found.kwh * 3.6e6 == pytest.approx(330)


def test_counters_are_called_as_codecarbon_calls_them():
    from codecarbon.external.hardware import CPU

    modes = ("intel_rapl", "windows_emi", "intel_power_gadget")
    described = []
    for mode in modes:
        cpu = CPU.__new__(CPU)
        vars(cpu)["_mode"] = mode
        described.append(cpu.description())
    assert described == list(COUNTERS)


def test_without_proc_it_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"unavailable: codecarbon cannot be set up: \w"):
        EnergyMeter(EnergySettings(), "cpu")


# --- which GPU -----------------------------------------------------------------------------

SLOW, FAST = "GPU-8a3b1234-0000-4000-8000-000000000001", "GPU-9b3b1234-0000-4000-8000-000000000002"


@pytest.fixture
def gpus(monkeypatch):
    """Of which NVML calls the slower 0, and CUDA the faster, the only one that is visible."""
    from types import SimpleNamespace

    from codecarbon.core import gpu, hardware_cache
    from codecarbon.core.units import Energy, Power
    from codecarbon.external import hardware

    class NvidiaGPUDevice(SimpleNamespace):
        _use_power_fallback = False

        def emit_selection_warning(self):
            pass

    class AllGPUDevices:
        def __init__(self):
            uuids = (SLOW, FAST)
            self.devices = [NvidiaGPUDevice(gpu_index=n, uuid=u) for n, u in enumerate(uuids)]
            self.device_count = 2

        def get_gpu_static_info(self):
            return [{"name": "a GPU", **vars(device)} for device in self.devices]

        get_gpu_details = get_gpu_static_info

        def get_gpu_utilization_list(self):
            return []

        def sample_power(self, gpu_ids):
            pass

        def get_delta(self, duration):
            return [
                {
                    "gpu_index": device.gpu_index,
                    "delta_energy_consumption": Energy(1.0 + device.gpu_index),
                    "power_usage": Power(0.1),
                }
                for device in self.devices
            ]

    cuda = SimpleNamespace(uuid=FAST.removeprefix("GPU-"))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: cuda)
    monkeypatch.setattr("bitgate.measure.energy_meter._synchronize", lambda device: None)
    monkeypatch.setattr(hardware, "AllGPUDevices", AllGPUDevices)
    monkeypatch.setattr(gpu, "is_nvidia_system", lambda: True)
    hardware_cache.clear_cache()
    yield cuda
    hardware_cache.clear_cache()


@pytest.mark.parametrize("visible", [None, "1", FAST, FAST[:12]])
def test_the_gpu_that_works_is_the_one_that_is_watched(gpus, monkeypatch, visible):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = EnergyMeter(EnergySettings(), "cuda:0").measure(lambda: None)
    assert found.kwh == 2.0
    assert found.source.startswith("measured: GPU by NVML's counter; without ")


def test_a_gpu_that_the_driver_does_not_tell_is_an_error(gpus):
    gpus.uuid = "MIG-1"
    with pytest.raises(MeasureError, match=f"cuda:0 is MIG-1 for CUDA.* only {SLOW}, {FAST}: "):
        EnergyMeter(EnergySettings(), "cuda:0")


# --- silent, offline, without a trace ------------------------------------------------------

SILENT = """
import socket, sys
def refused(*_, **__):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
from bitgate.catalog.energy import EnergySettings
from bitgate.measure.energy_meter import EnergyMeter
meter = EnergyMeter(EnergySettings(country="FRA"), "cpu")
for _ in range(2):
    assert meter.measure(lambda: sum(range(3_000_000))).kwh > 0
"""


def test_it_is_silent_offline_and_leaves_nothing(tmp_path):
    """Whatever the user's own configuration of codecarbon says."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".codecarbon.config").write_text(
        "[codecarbon]\nsave_to_file = true\nlog_level = debug\noutput_methods = csv,api\n"
        "emissions_endpoint = http://127.0.0.1:9/\nco2_signal_api_token = secret\n"
        "allow_multiple_runs = false\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", SILENT],
        cwd=work,
        env={**environment, "CODECARBON_LOG_LEVEL": "debug"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not list(work.iterdir())
    assert socket.socket  # of this process: untouched


# --- settings ------------------------------------------------------------------------------


def settings(tmp_path, text, **environment):
    (tmp_path / "energy.toml").write_text(text)
    return read_energy(tmp_path, environment)


def test_without_a_file_there_are_defaults(tmp_path):
    assert read_energy(tmp_path, {}) == EnergySettings()


def test_the_environment_overrides_the_file(tmp_path):
    found = settings(
        tmp_path,
        '[energy]\ncountry = "FRA"\ncpu_watts = 65.0\n',
        BITGATE_ENERGY_COUNTRY="POL",
        BITGATE_ENERGY_PUE="1.2",
    )
    assert found == EnergySettings(country="POL", cpu_watts=65.0, pue=1.2)


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ('[energy]\ncountry = "France"\n', {}, r"energy.toml: \[energy\]: country: .*'France'"),
        ('[energy]\ncountry = "FRX"\n', {}, r"energy.toml: .* no such country; did you mean 'F"),
        ("", {"BITGATE_ENERGY_COUNTRY": "FRX"}, r"BITGATE_ENERGY_COUNTRY: .*no such country"),
        ("[energy]\ncpu_watts = 0\n", {}, r"cpu_watts: .*greater than 0"),
        ("[energy]\npue = 0.5\n", {}, r"pue: .*greater than or equal to 1"),
        ("[energy]\nwatts = 5\n", {}, r"watts: unknown key; did you mean"),
        ("[power]\n", {}, r"energy.toml: power: unknown table; .*energy"),
        ("", {"BITGATE_ENERGY_CPU_WATTS": "many"}, r"BITGATE_ENERGY_CPU_WATTS: .*'many'"),
        ("", {"BITGATE_ENERGY_CPU": "5"}, r"BITGATE_ENERGY_CPU: unknown variable; did you mean"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, environment, said):
    with pytest.raises(CatalogError, match=said):
        settings(tmp_path, text, **environment)
