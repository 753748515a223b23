"""What a number format may lose of a tensor before it is refused."""

from dataclasses import dataclass, fields

from mp_plugin.checks import is_number
from mp_plugin.config import Fallback
from mp_plugin.errors import ConfigError
from mp_plugin.telemetry.format_fit import FormatFit


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Highest shares of a layer's non-zero values that a format may lose; by bounds, the upper one counts.

    Raises:
        ConfigError: when a field is outside 0 to 1; the message names the field.

    Example:
        >>> Tolerances(flushed=0.01)
        Tolerances(overflow=0.0, flushed=0.01, subnormal=0.1)
    """

    overflow: float = 0.0
    """Beyond the largest value; 0 to 1. One Inf is enough to lose a step."""
    flushed: float = Fallback.underflow_tolerance
    """Rounded to zero; 0 to 1. The default is that of `Fallback.underflow_tolerance`."""
    subnormal: float = 0.1
    """Left with fewer digits than the format has, though not zero; 0 to 1."""

    def __post_init__(self) -> None:
        """Check every field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not is_number(value, lowest=0, highest=1):
                raise ConfigError(f"Tolerances.{field.name}={value!r} is not accepted; accepted: a number, 0 to 1.")

    def accept(self, fit: FormatFit) -> bool:
        """Return whether a format loses no more than this."""
        return (
            fit.overflow.high <= self.overflow
            and fit.flushed.high <= self.flushed
            and fit.subnormal.high <= self.subnormal
        )
