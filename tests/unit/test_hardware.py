"""What a figure was measured on."""

import platform
from pathlib import Path

import pytest

from bitgate.history.hardware import _processor, hardware_of


def test_a_processor_has_a_name():
    assert hardware_of("cpu")
    assert hardware_of("cpu") == hardware_of("cpu")


def test_the_name_that_its_maker_gave_it(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3: fast\nflags\t: a\n")
    assert _processor(path) == "Some CPU @ 3: fast"
    path.write_text("processor\t: 0\n")  # as on some ARM machines
    assert _processor(path) is None
    assert _processor(tmp_path / "gone") is None


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc here")
def test_it_is_that_of_this_machine():
    expected = _processor(Path("/proc/cpuinfo")) or platform.processor() or platform.machine()
    assert hardware_of("cpu") == expected
