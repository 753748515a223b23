r"""How many values of a histogram a number format would lose, without a cast and without the values.

A bin holds the values with $2^{e-1} < |x| \le 2^e$, and a format begins to lose values at three magnitudes:

- What is at most half of its smallest subnormal is *flushed* to zero. That is a power of two, so the bins tell it
  exactly.
- What is larger, and below its smallest normal value by more than half a step, comes out *subnormal*: with fewer
  digits. The bin just below the smallest normal value also holds values that are rounded up to it: bounds.
- What is rounded beyond its largest value *overflows*. That lies inside a bin: bounds, unless the largest magnitude,
  which is known, does not overflow. Then nothing does.

A scale of a power of two moves every value by whole bins.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mp_plugin.errors import ConfigError
from mp_plugin.formats import Format

HIGHEST_SCALE = 2.0**126
"""Its reciprocal is a normal number of fp32, in which scales are kept."""


class Share(NamedTuple):
    """A fraction of the values, 0 to 1, between two bounds that are both possible as far as the histogram tells."""

    low: float
    high: float

    @property
    def is_exact(self) -> bool:
        """Whether the bounds are the same."""
        return self.low == self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatFit:
    """What happens to the values of a tensor in a number format: fractions of the finite values that are not zero."""

    scale: float
    """What the values are multiplied by before."""
    overflow: Share
    """Rounded beyond the largest finite value."""
    flushed: Share
    """Rounded to zero; always exact."""
    subnormal: Share
    """Not zero, but below the smallest normal value: with fewer digits."""


def format_fit(exponents: Mapping[int, int], amax: float, number_format: Format, *, scale: float = 1.0) -> FormatFit:
    """Return what fractions of the values a format would lose.

    Args:
        exponents: number of finite values that are not zero, by exponent, as `TensorStats.exponents`.
        amax: the largest of their magnitudes.
        number_format: they would be rounded to, to nearest.
        scale: a power of two that they are multiplied by before.

    Raises:
        ConfigError: for a scale that is no power of two.

    Example:
        >>> from mp_plugin.formats import FORMATS
        >>> found = format_fit({-30: 1, -20: 2, 0: 4, 16: 1}, 65519.0, FORMATS["fp16"])
        >>> found.flushed, found.subnormal, found.overflow
        (Share(low=0.125, high=0.125), Share(low=0.25, high=0.25), Share(low=0.0, high=0.0))
        >>> format_fit({-30: 1, -20: 2, 0: 4, 16: 1}, 65519.0, FORMATS["fp16"], scale=2.0).overflow
        Share(low=0.125, high=0.125)
    """
    mantissa, shift = math.frexp(scale)
    if mantissa != 0.5:
        raise ConfigError(f"scale={scale!r} is not accepted; accepted: a power of two.")
    total = sum(exponents.values())
    if not total:
        return FormatFit(scale=scale, overflow=_NONE, flushed=_NONE, subnormal=_NONE)
    # Of what comes out: a scale of 2**k has the exponent k + 1 here.
    counts = {exponent + shift - 1: count for exponent, count in exponents.items()}
    amax *= scale
    flush_bin, normal_bin = _bin(number_format.smallest_subnormal / 2), _bin(number_format.smallest_normal)
    overflow_bin = _bin(number_format.max)

    flushed = sum(count for each, count in counts.items() if each <= flush_bin)
    subnormal = sum(count for each, count in counts.items() if flush_bin < each < normal_bin)
    beyond = sum(count for each, count in counts.items() if each > overflow_bin)

    # Of the two bins that an edge divides, amax tells on which side one value lies if it is in that bin.
    at_normal = counts.get(normal_bin, 0)
    is_there, is_normal = _bin(amax) == normal_bin, amax >= _first_normal(number_format)
    surely_subnormal, surely_normal = (at_normal * (not is_normal), is_normal) if is_there and at_normal else (0, 0)

    at_overflow = counts.get(overflow_bin, 0) * overflows(amax, number_format)
    surely_over = int(bool(at_overflow) and _bin(amax) == overflow_bin)
    return FormatFit(
        scale=scale,
        overflow=Share((beyond + surely_over) / total, (beyond + at_overflow) / total),
        flushed=Share(flushed / total, flushed / total),
        subnormal=Share((subnormal + surely_subnormal) / total, (subnormal + at_normal - surely_normal) / total),
    )


def best_scale(exponents: Mapping[int, int], amax: float, number_format: Format) -> float:
    """Return the power of two at which a format loses the fewest values: none by overflow, then few to zero.

    The higher the scale, the fewer values are flushed or subnormal. So the best is the highest at which the largest
    magnitude fits, or 1 where that is as good.

    Example:
        >>> from mp_plugin.formats import FORMATS
        >>> best_scale({-30: 1, -20: 2, 2: 1}, 3.0, FORMATS["fp16"])
        16384.0
    """
    if not amax:
        return 1.0
    scale = min(math.ldexp(1.0, _bin(number_format.max) - _bin(amax)), HIGHEST_SCALE)
    if overflows(amax * scale, number_format):
        scale /= 2
    best, plain = (format_fit(exponents, amax, number_format, scale=each) for each in (scale, 1.0))
    as_good = (plain.overflow.high, plain.flushed.high, plain.subnormal.high) <= (
        best.overflow.high,
        best.flushed.high,
        best.subnormal.high,
    )
    return 1.0 if as_good else scale


def overflows(magnitude: float, number_format: Format) -> bool:
    """Return whether a magnitude is rounded beyond the largest finite value of a format, to nearest, ties to even.

    Example:
        >>> from mp_plugin.formats import FORMATS
        >>> overflows(65519.0, FORMATS["fp16"]), overflows(65520.0, FORMATS["fp16"])
        (False, True)
    """
    largest = number_format.max
    step = math.ldexp(1.0, math.frexp(largest)[1] - 1 - number_format.mantissa_bits)
    # The neighbour above would be the even one if the last digit of the largest is odd, as it is where Inf comes next.
    is_odd = bool(largest / step % 2)
    halfway = largest + step / 2
    return magnitude >= halfway if is_odd else magnitude > halfway


_NONE = Share(0.0, 0.0)


def _bin(magnitude: float) -> int:
    """Return the exponent that a magnitude counts for."""
    mantissa, exponent = math.frexp(magnitude)
    return exponent - (mantissa == 0.5)


def _first_normal(number_format: Format) -> float:
    """Return the smallest magnitude that is rounded up to the smallest normal value, which is even."""
    return number_format.smallest_normal - number_format.smallest_subnormal / 2
