"""The energy that a GPU has used, as its driver counts it: NVML by ctypes, which needs no package."""

import contextlib
import ctypes
from collections.abc import Callable

import torch

LIBRARY = "libnvidia-ml.so.1"


def energy_meter(device: str, library: str = LIBRARY) -> Callable[[], float] | None:
    """Return what reads the joules that the current GPU has used since its driver was loaded.

    The counter moves every few ten milliseconds: take differences over a second or so, and wait for the device first.

    Args:
        device: `cpu` or `cuda`.
        library: the file name of NVML.

    Returns:
        The reader; None where nobody counts: on a CPU, without NVML, or with a GPU that is too old.
    """
    if device != "cuda":
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return meter_of(f"GPU-{properties.uuid}", library)


def meter_of(uuid: str, library: str = LIBRARY) -> Callable[[], float] | None:
    """Return what reads the joules of the GPU with this identity, as `nvidia-smi -L` shows it; None if nobody can.

    Example:
        >>> meter_of("GPU-0", library="no-such-file.so") is None
        True
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    # By its identity: CUDA_VISIBLE_DEVICES renumbers devices for CUDA alone.
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
        return None

    def read() -> float:
        if error := nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            raise OSError(f"NVML error {error} in nvmlDeviceGetTotalEnergyConsumption.")
        return millijoules.value / 1000

    with contextlib.suppress(OSError):
        read()
        return read
    return None
