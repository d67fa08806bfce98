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
    path.write_text("processor\t: 0\n")
    assert _processor(path) is None
    assert _processor(tmp_path / "gone") is None


def test_on_arm_processors_are_told_apart_by_their_numbers(tmp_path):
    """There is no `model name`, and all of them are called `aarch64`."""
    path = tmp_path / "cpuinfo"

    def name(*parts):
        path.write_text(
            "\n\n".join(
                f"processor\t: {number}\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n"
                f"CPU architecture: 8\nCPU part\t: {part}\nCPU revision\t: 1"
                for number, part in enumerate(parts)
            )
        )
        return _processor(path)

    assert name("0xd0c", "0xd0c") == "ARM implementer 0x41 part 0xd0c"
    assert name("0xd0b", "0xd05") == "ARM implementer 0x41 part 0xd05/0xd0b"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc here")
def test_it_is_that_of_this_machine():
    expected = _processor(Path("/proc/cpuinfo")) or platform.processor() or platform.machine()
    assert hardware_of("cpu") == expected
