"""What a user can set, checked when it is set."""

import math
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

from mp_plugin.checks import is_count, is_number
from mp_plugin.errors import ConfigError

LOWEST_SCALE = 2.0**-64
HIGHEST_SCALE = 2.0**64
"""Both far from 2**-128, where the fp32 reciprocal of the scale is infinite and unscaling makes NaN of zero."""


class Policy(str, Enum):
    """How the loss scale moves."""

    dynamic = "dynamic"
    """Grow after `growth_interval` clean steps, back off on an overflow (Micikevicius et al., 2018)."""
    predictive = "predictive"
    """Forecast the largest gradient and stay just below the highest scale that fits it; needs no overflow."""
    static = "static"
    """Stay at `init_scale`; an overflow only skips the step."""


class AtMinScale(str, Enum):
    """What to do after `patience` overflows in a row at a scale that cannot go lower."""

    raise_ = "raise"
    """Stop the run with the weights of the last good step."""
    skip = "skip"
    """Go on skipping steps, and counting them."""


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """How the loss of a 16-mixed run is scaled, so that small gradients survive fp16.

    Raises:
        ConfigError: when a field is outside its range; the message names the field.

    Example:
        >>> LossScaling(init_scale=2**10, growth_interval=500).max_scale
        16777216.0
    """

    policy: Policy = Policy.dynamic
    """`dynamic` follows overflows, `predictive` the size of the gradients, `static` keeps `init_scale`."""
    init_scale: float = 2.0**15
    """First scale. 2**15 is the largest power of two below fp16's 65504: a summed loss does not overflow at once."""
    growth_factor: float = 2.0
    """Multiplies the scale after `growth_interval` clean steps; above 1. Powers of two keep scaling exact."""
    backoff_factor: float = 0.5
    """Multiplies the scale on an overflow; between 0 and 1, exclusive."""
    growth_interval: int = 2000
    """Clean optimizer steps in a row before the scale grows; at least 1."""
    hysteresis: int = 1
    """Overflows it takes to back off, refilled when the scale changes; at least 1. Above 1, a bad batch may be free."""
    min_scale: float = 1.0
    """Lowest scale; from 2**-64 up to `init_scale`."""
    max_scale: float = 2.0**24
    """Highest scale; from `init_scale` up to 2**64."""
    at_min_scale: AtMinScale = AtMinScale.raise_
    """What `patience` overflows in a row at the lowest scale lead to: `raise` or `skip`."""
    patience: int = 10
    """Overflows in a row, at a scale that cannot go lower, before `at_min_scale` applies; at least 1."""
    retries: int = 1
    """Times an overflowed batch is run again, each time after the scale was lowered; 0 loses the batch."""

    def __post_init__(self) -> None:
        """Check every field and turn names into enum members."""
        set_ = object.__setattr__  # the dataclass is frozen for everybody else
        set_(self, "policy", _choice("policy", self.policy, Policy))
        set_(self, "at_min_scale", _choice("at_min_scale", self.at_min_scale, AtMinScale))
        for name in ("min_scale", "init_scale", "max_scale"):
            set_(self, name, _number(name, getattr(self, name), LOWEST_SCALE, HIGHEST_SCALE, "2**-64 to 2**64"))
        if not self.min_scale <= self.init_scale <= self.max_scale:
            raise ConfigError(
                f"LossScaling.init_scale={self.init_scale:.15g} is out of order; accepted: "
                f"min_scale ({self.min_scale:.15g}) <= init_scale <= max_scale ({self.max_scale:.15g})."
            )
        above_one, above_zero, below_one = math.nextafter(1, 2), math.nextafter(0, 1), math.nextafter(1, 0)
        accepted = "above 1 and at most 2**64"
        set_(self, "growth_factor", _number("growth_factor", self.growth_factor, above_one, HIGHEST_SCALE, accepted))
        accepted = "between 0 and 1, exclusive"
        set_(self, "backoff_factor", _number("backoff_factor", self.backoff_factor, above_zero, below_one, accepted))
        for name in ("growth_interval", "hysteresis", "patience"):
            set_(self, name, _count(name, getattr(self, name), lowest=1))
        set_(self, "retries", _count("retries", self.retries, lowest=0))


def _choice(name: str, value: object, choices: type[Enum]) -> Enum:
    try:
        return choices(value)
    except ValueError:
        accepted = ", ".join(repr(member.value) for member in choices)
        raise ConfigError(f"LossScaling.{name}={value!r} is unknown; accepted: {accepted}.") from None


def _number(name: str, value: Any, lowest: float, highest: float, accepted: str) -> float:
    if not is_number(_plain(value), lowest=lowest, highest=highest):
        raise ConfigError(f"LossScaling.{name}={value!r} is not accepted; accepted: a number, {accepted}.")
    return float(value)


def _count(name: str, value: Any, *, lowest: int) -> int:
    if not is_count(_plain(value), lowest=lowest):
        raise ConfigError(f"LossScaling.{name}={value!r} is not accepted; accepted: a whole number, at least {lowest}.")
    return int(value)


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as a number of Python's own, and everything else as it is."""
    if isinstance(value, (bool, int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
