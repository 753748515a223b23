"""The joules of a GPU are read through NVML's interface: here from a library built for the test."""

import shutil
import subprocess

import pytest

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

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def build(folder, *, init=0, energy=0):
    source, library = folder / "nvml.c", folder / f"libnvml-{init}-{energy}.so"
    source.write_text(NVML)
    options = [f"-DINIT={init}", f"-DENERGY={energy}", "-shared", "-fPIC"]
    subprocess.run(["cc", *options, "-o", str(library), str(source)], check=True)
    return str(library)


def test_the_energy_of_a_gpu_is_counted_in_joules(tmp_path):
    from helpers.energy import meter_of

    read = meter_of("GPU-7", build(tmp_path))
    first = read()
    assert read() - first == 1.5


@pytest.mark.parametrize("errors", [{"init": 1}, {"energy": 3}], ids=["no driver", "a GPU that does not count"])
def test_nobody_counts_where_nvml_cannot(tmp_path, errors):
    from helpers.energy import meter_of

    assert meter_of("GPU-7", build(tmp_path, **errors)) is None


def test_nobody_counts_for_another_gpu(tmp_path):
    from helpers.energy import meter_of

    assert meter_of("GPU-8", build(tmp_path)) is None


def test_nobody_counts_on_a_cpu_or_without_nvml():
    from helpers.energy import energy_meter, meter_of

    assert energy_meter("cpu") is None
    assert meter_of("GPU-7", "no-such-file.so") is None
