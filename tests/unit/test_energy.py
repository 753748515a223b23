"""Joules as the hardware counts them: through NVML's interface, of a library built for the test, and from sysfs."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mp_plugin import energy
from mp_plugin.energy import EnergyMeter, nvml_counter

# An NVML that knows one GPU and counts 1,500 millijoules from one reading to the next.
NVML = """
#include <string.h>
static int gpu, is_ready;
static unsigned long long millijoules;
int nvmlInit_v2(void) { is_ready = 1; return INIT; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    *handle = &gpu;
    return !is_ready || strcmp(uuid, "GPU-7");
}
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy) {
    if (handle != &gpu) return 2;
    *energy = millijoules += 1500;
    return ENERGY;
}
"""

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
CPU = torch.device("cpu")


def build(folder, *, init=0, energy=0):
    source, library = folder / "nvml.c", folder / f"libnvml-{init}-{energy}.so"
    source.write_text(NVML)
    options = [f"-DINIT={init}", f"-DENERGY={energy}", "-shared", "-fPIC"]
    subprocess.run(["cc", *options, "-o", str(library), str(source)], check=True)
    return str(library)


@needs_cc
def test_the_energy_of_a_gpu_is_counted_in_joules(tmp_path):
    read = nvml_counter("GPU-7", build(tmp_path))
    first = read()
    assert read() - first == 1.5


@needs_cc
@pytest.mark.parametrize(
    ("errors", "function"),
    [({"init": 1}, "nvmlInit_v2 with error 1"), ({"energy": 3}, "nvmlDeviceGetTotalEnergyConsumption with error 3")],
    ids=["no driver", "a GPU that does not count"],
)
def test_where_nvml_cannot_count_it_says_so(tmp_path, errors, function):
    with pytest.raises(OSError, match=function):
        nvml_counter("GPU-7", build(tmp_path, **errors))


@needs_cc
def test_nobody_counts_for_another_gpu(tmp_path):
    with pytest.raises(OSError, match="nvmlDeviceGetHandleByUUID with error 1"):
        nvml_counter("GPU-8", build(tmp_path))


def test_nobody_counts_without_nvml():
    with pytest.raises(OSError, match=r"no-such-file\.so"):
        nvml_counter("GPU-7", "no-such-file.so")


def powercap(folder: Path, **microjoules: int) -> Path:
    """Write what Linux shows of two packages, the cores of one of them, and a sum that some machines count too."""
    names = {"0": "package-0", "0:0": "core", "1": "package-1", "2": "psys"}
    for number, name in names.items():
        domain = folder / f"intel-rapl:{number}"
        domain.mkdir(parents=True, exist_ok=True)
        (domain / "name").write_text(f"{name}\n")
        (domain / "max_energy_range_uj").write_text("262000000000\n")
        (domain / "energy_uj").write_text(f"{microjoules.get(f'd{number[0]}', 0)}\n")
    return folder


def test_rapl_adds_up_packages_and_goes_round(tmp_path):
    meter = EnergyMeter(CPU, powercap=powercap(tmp_path, d0=261_999_000_000, d1=5_000_000, d2=7))
    assert meter.read() == (0.0, "rapl")
    powercap(tmp_path, d0=1_000_000, d1=6_500_000, d2=9_000_000)  # the first began again at 0
    joules, source = meter.read()
    assert joules == pytest.approx(2.0 + 1.5)
    assert source == "rapl"
    powercap(tmp_path, d0=2_000_000, d1=6_500_000)
    assert meter.read()[0] == pytest.approx(4.5)


def test_a_counter_that_may_have_gone_round_unnoticed_is_no_measurement(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(energy.time, "monotonic", lambda: now)
    meter = EnergyMeter(CPU, powercap=powercap(tmp_path))
    now = 262.0  # the range at 1000 W
    assert meter.read() == (0.0, "rapl")
    now = 525.0
    joules, source = meter.read()
    assert joules is None
    assert source == ("not measured: a counter of RAPL stayed unread for more than 262 s, and may have gone round")
    assert meter.read() == (None, source)


def test_counters_that_this_user_may_not_read_are_named(tmp_path):
    file = powercap(tmp_path) / "intel-rapl:0" / "energy_uj"
    file.unlink()
    file.mkdir()  # which no user can read, not even root
    joules, source = EnergyMeter(CPU, powercap=tmp_path).read()
    assert joules is None
    assert source == f"not measured: {file} cannot be read (Is a directory)"


def test_a_counter_that_vanishes_is_told(tmp_path):
    meter = EnergyMeter(CPU, powercap=powercap(tmp_path))
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    joules, source = meter.read()
    assert joules is None
    assert source.endswith("intel-rapl:1/energy_uj cannot be read (No such file or directory)")


def test_other_devices_are_not_counted():
    assert EnergyMeter(torch.device("mps")).read() == (None, "not measured: nothing here counts the energy of 'mps'")
