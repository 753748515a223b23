"""Where a run ran: versions, devices, ranks."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("mp-plugin", "torch", "lightning", "hydra-core", "omegaconf")
"""Whose versions matter when two runs differ."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on.

    Example:
        >>> list(versions())
        ['python', 'mp-plugin', 'torch', 'lightning', 'hydra-core', 'omegaconf', 'CUDA of torch']
    """
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "CUDA of torch": torch.version.cuda or "none: a CPU build",
    }


def environment(device: torch.device, *, ranks: int, strategy: str) -> dict[str, str]:
    """Return names and values that say where a run ran, to show.

    Args:
        device: of this rank.
        ranks: that train together.
        strategy: what unites them.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
    return {
        **versions(),
        "device": name,
        "ranks": str(ranks),
        "strategy": strategy,
        "CPU cores": str(os.cpu_count()),
        "system": platform.platform(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
