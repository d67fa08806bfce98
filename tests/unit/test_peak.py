"""The peak of a process' memory, as Linux tells it."""

import pytest

from bitgate.measure.peak import NoPeakError, Peak, resident

STATUS = "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"


def test_what_linux_tells_is_read(tmp_path):
    (tmp_path / "status").write_text(STATUS)
    assert resident("VmHWM", tmp_path / "status") == 2 * 2**20
    assert resident("VmRSS", tmp_path / "status") == 2**20


def test_where_it_does_not_tell_it_is_said(tmp_path):
    with pytest.raises(NoPeakError, match="status: No such file or directory"):
        resident("VmHWM", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\n")
    with pytest.raises(NoPeakError, match="status does not tell VmHWM"):
        resident("VmHWM", tmp_path / "status")


def test_memory_that_is_gone_counts():
    try:
        peak = Peak("cpu")
    except NoPeakError as error:
        pytest.skip(str(error))
    block = bytearray(64 * 2**20)
    block[:: 2**12] = b"1" * len(block[:: 2**12])  # every page is touched
    del block
    assert 60 * 2**20 < peak.taken() < 300 * 2**20
