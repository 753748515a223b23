"""A PyTorch Lightning precision plugin that explains overflows instead of hiding them.

The names below are imported when they are first used, so that `mp-plugin --help` does not wait for torch.
"""

from typing import TYPE_CHECKING, Any

from mp_plugin._version import __version__

if TYPE_CHECKING:
    from mp_plugin.config import Fallback, LossScaling, Telemetry
    from mp_plugin.cost_meter import CostMeter
    from mp_plugin.precision import AdaptivePrecision

__all__ = ["AdaptivePrecision", "CostMeter", "Fallback", "LossScaling", "Telemetry", "__version__"]

_HOMES = {
    "AdaptivePrecision": "mp_plugin.precision",
    "CostMeter": "mp_plugin.cost_meter",
    "Fallback": "mp_plugin.config",
    "LossScaling": "mp_plugin.config",
    "Telemetry": "mp_plugin.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mp_plugin' has no attribute {name!r}; it has: {', '.join(__all__)}.")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
