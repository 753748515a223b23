"""What a run ran on."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch


def environment(device: torch.device | None = None, ranks: int | None = None) -> dict[str, Any]:
    """Versions and devices; chosen one by one, so that nothing private gets into a run's files.

    Args:
        device: where the model is, once that is known.
        ranks: processes of the run, once that is known.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "mp_plugin": version("mp-plugin"),
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": None if device is None else _device(device),
        "ranks": ranks,
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:  # not on Linux
        names = []
    return names[0] if names else platform.processor() or platform.machine()
