"""Which loss scales would let a run's gradients live in fp16, found by trying every power of two on the histograms."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mp_plugin.config import LossScaling
from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.format_fit import format_fit
from mp_plugin.telemetry.tensor_stats import TensorStats
from mp_plugin.telemetry.tolerances import Tolerances

SCALES = tuple(
    2.0**power for power in range(int(math.log2(LossScaling.min_scale)), int(math.log2(LossScaling.max_scale)) + 1)
)
"""The powers of two that loss scaling has at its default limits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp16Scales:
    """The loss scales that fit the most layers, in every sampled step."""

    lowest: float
    highest: float
    layers: frozenset[str]
    """That they fit; all others would have to be in FP32."""


def fp16_scales(gradients: Mapping[str, Collection[TensorStats]], tolerances: Tolerances) -> Fp16Scales | None:
    """Return the loss scales at which the most layers lose no more than is tolerated; of several, the widest window.

    Unlike `scaling.window.scale_window`, this minds values that come out subnormal, too.

    Args:
        gradients: true gradients by layer, one statistic for each kind; all of a layer's have to fit.
        tolerances: what a layer may lose.

    Returns:
        The window; None where no layer fits any scale.

    Example:
        >>> layers = {"stem": [TensorStats(amax=2.0**10, exponents={10: 9})], "head": [TensorStats(exponents={-30: 9})]}
        >>> found = fp16_scales(layers | {"block": layers["head"]}, Tolerances())
        >>> found.lowest, found.highest, sorted(found.layers)
        (131072.0, 16777216.0, ['block', 'head'])
    """
    at_scale = [
        frozenset(name for name, kinds in gradients.items() if _fit(kinds, scale, tolerances)) for scale in SCALES
    ]
    windows = [_upwards(place, at_scale) for place, layers in enumerate(at_scale) if layers]
    return max(windows, key=lambda window: (len(window.layers), window.highest / window.lowest), default=None)


def _fit(kinds: Collection[TensorStats], scale: float, tolerances: Tolerances) -> bool:
    return all(tolerances.accept(format_fit(each.exponents, each.amax, FORMATS["fp16"], scale=scale)) for each in kinds)


def _upwards(place: int, at_scale: list[frozenset[str]]) -> Fp16Scales:
    """Return the scales from one upwards that fit the same layers."""
    high = place
    while high + 1 < len(at_scale) and at_scale[high + 1] == at_scale[place]:
        high += 1
    return Fp16Scales(lowest=SCALES[place], highest=SCALES[high], layers=at_scale[place])
