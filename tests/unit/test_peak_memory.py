import mmap
import sys

import pytest
import torch

from mp_plugin.peak_memory import AFTER_OTHERS, PeakMemory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def first(monkeypatch):
    """No fit was measured in this process yet."""
    monkeypatch.setattr(PeakMemory, "_has_counted", False)


MIB = 1024 * 1024


def fill(mib: int) -> None:
    """Touch memory, and give it back to the system at once."""
    with mmap.mmap(-1, mib * MIB) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can set the peak back")
def test_a_fit_does_not_inherit_the_peak_of_the_one_before():
    fill(300)
    meter = PeakMemory(CPU)
    low, of = meter.read()
    assert of == "process, resident"
    fill(100)
    high, _ = meter.read()
    assert low is not None
    assert high is not None
    assert 95 * MIB < high - low < 200 * MIB


def test_where_the_peak_cannot_be_set_back_the_label_says_so(tmp_path):
    nbytes, of = PeakMemory(CPU, process=tmp_path / "missing").read()
    assert nbytes is not None
    assert nbytes > 50 * MIB  # of getrusage: Python and torch
    assert of == "process, resident, since it started"


def test_what_linux_says_is_in_kilobytes(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t      12 kB\n")
    assert PeakMemory(CPU, process=tmp_path).read() == (2 * MIB, "process, resident")
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_what_other_fits_left_is_told():
    labels = [PeakMemory(CPU).read()[1] for _ in range(3)]
    assert [label.removeprefix(labels[0]) for label in labels] == ["", AFTER_OTHERS, AFTER_OTHERS]


def test_other_devices_are_not_measured():
    nbytes, of = PeakMemory(torch.device("mps")).read()
    assert nbytes is None
    assert of == "not measured: nothing here tells the peak of 'mps'"
