"""Which loss scales fit the gradients of every layer: not so high that one overflows, nor so low that many vanish."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mp_plugin.formats import Format
from mp_plugin.telemetry.tensor_stats import TensorStats

Bounds = tuple[float, float]
"""Lowest and highest loss scale; none fits if the lowest is above the highest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleWindow:
    """The loss scales that all layers tolerate."""

    lowest: float
    """Below it more gradient values of some layer flush to zero than are tolerated."""
    highest: float
    """Above it the largest gradient of some layer overflows."""
    by_layer: Mapping[str, Bounds] = field(default_factory=dict)
    """The same for each layer, within the limits of the loss scale."""
    emptied_by: tuple[str, ...] = ()
    """A smallest set of layers without which some scale fits all others; empty if one fits all."""

    @property
    def is_empty(self) -> bool:
        """Whether no loss scale fits all layers."""
        return self.lowest > self.highest

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def scale_window(
    layers: Mapping[str, TensorStats],
    *,
    number_format: Format,
    underflow_tolerance: float,
    min_scale: float,
    max_scale: float,
) -> ScaleWindow:
    r"""Return the loss scales that fit the gradients of all layers.

    A scale $s$ fits a layer if $s \cdot \mathrm{amax}$ does not exceed the largest value of the format, and if at most
    `underflow_tolerance` of its non-zero values are rounded to zero when multiplied by $s$. Bounds are powers of two,
    for which both are exact, unless `min_scale` or `max_scale` is the bound. A layer with NaN or Inf fits no scale, one
    without gradients every scale.

    Args:
        layers: true gradients, that is divided by the loss scale, of each layer. What the format flushed to zero before
            is not seen: they are best taken in FP32, or at a high scale.
        number_format: in which gradients are computed.
        underflow_tolerance: share of non-zero values of a layer that may vanish, 0 to 1.
        min_scale: no scale is below it.
        max_scale: no scale is above it.

    Example:
        >>> from mp_plugin.formats import FORMATS
        >>> layers = {"stem": TensorStats(amax=2.0**10, exponents={10: 9}), "head": TensorStats(exponents={-33: 9})}
        >>> limits = {"underflow_tolerance": 0.05, "min_scale": 1.0, "max_scale": 2.0**24}
        >>> scale_window(layers, number_format=FORMATS["fp16"], **limits)  # doctest: +NORMALIZE_WHITESPACE
        ScaleWindow(lowest=512.0, highest=32.0, by_layer={'stem': (1.0, 32.0), 'head': (512.0, 16777216.0)},
                    emptied_by=('stem',))
    """
    by_layer = {
        name: (
            max(min_scale, _lowest(each, number_format, underflow_tolerance)),
            min(max_scale, _highest(each, number_format)),
        )
        for name, each in layers.items()
    }
    lowest, highest = _common(by_layer.values(), (min_scale, max_scale))
    kept = _most_that_fit(by_layer, (min_scale, max_scale))
    emptied_by = tuple(name for name in by_layer if name not in kept)
    return ScaleWindow(lowest=lowest, highest=highest, by_layer=by_layer, emptied_by=emptied_by)


def _highest(gradients: TensorStats, number_format: Format) -> float:
    """Largest power of two by which the largest gradient can be multiplied."""
    if gradients.non_finite:
        return 0.0
    if not gradients.amax:
        return math.inf
    mantissa, exponent = math.frexp(gradients.amax)
    max_mantissa, max_exponent = math.frexp(number_format.max)
    return math.ldexp(1.0, max_exponent - exponent - (mantissa > max_mantissa))


def _lowest(gradients: TensorStats, number_format: Format, tolerance: float) -> float:
    """Smallest power of two at which the share of values that vanish is tolerated."""
    total = sum(gradients.exponents.values())
    num_vanished = 0
    for exponent, count in sorted(gradients.exponents.items()):
        num_vanished += count
        if num_vanished > tolerance * total:
            # This exponent has to come out one above the highest that vanishes.
            vanishing = math.frexp(number_format.smallest_subnormal / 2)[1] - 1
            return math.ldexp(1.0, vanishing + 1 - exponent)
    return 0.0


def _most_that_fit(by_layer: Mapping[str, Bounds], limits: Bounds) -> frozenset[str]:
    """Return the largest set of layers that one scale fits; of several, the one with the widest window."""

    def width(names: Iterable[str]) -> float:
        lowest, highest = _common([by_layer[name] for name in names], limits)
        return highest / lowest

    # Where most windows overlap, one of them begins.
    starts = {limits[0], *(lowest for lowest, _ in by_layer.values() if lowest <= limits[1])}
    fitting = [
        frozenset(name for name, (lowest, highest) in by_layer.items() if lowest <= scale <= highest)
        for scale in sorted(starts)
    ]
    return max(fitting, key=lambda names: (len(names), width(names)))


def _common(bounds: Iterable[Bounds], limits: Bounds) -> Bounds:
    lowest, highest = zip(limits, *bounds, strict=True)
    return max(lowest), min(highest)
