"""The energy that the current GPU has used."""

from collections.abc import Callable

import torch

from mp_plugin.energy import NVML, nvml_counter


def energy_meter(device: str, library: str = NVML) -> Callable[[], float] | None:
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
    try:
        return nvml_counter(f"GPU-{properties.uuid}", library)
    except OSError:
        return None
