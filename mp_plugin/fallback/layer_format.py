"""What one layer of a run ran in, and why."""

import reprlib
from dataclasses import dataclass, fields
from typing import Any

from mp_plugin.checks import is_count
from mp_plugin.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFormat:
    """What one layer ran in.

    Example:
        >>> LayerFormat.from_dict({"format": "fp16"}, "The layer head")
        Traceback (most recent call last):
        mp_plugin.errors.ConfigError: The layer head has ['format']; accepted: format, why, since_step, is_island and \
bears_parameters.
    """

    format: str
    """`fp16`, `bf16`, `fp32`, `fp64`, torch's own name of another one;
    `not run`, `not run by itself`, or `not observed`."""
    why: str
    """`autocast`, `weights`, or what made it an island, such as `rule: types *Norm*`."""
    since_step: int
    """Optimizer steps tried before."""
    is_island: bool
    """Whether it was chosen to run in FP32 itself, with all below it."""
    bears_parameters: bool

    @classmethod
    def from_dict(cls, values: Any, origin: str) -> "LayerFormat":
        """Rebuild it from plain values.

        Args:
            values: its fields.
            origin: what an error says of where they are from.

        Raises:
            ConfigError: for a field that is missing, unknown or of another type.
        """
        if not isinstance(values, dict) or values.keys() != {field.name for field in fields(cls)}:
            has = list(values) if isinstance(values, dict) else values
            raise ConfigError(
                f"{origin} has {shown(has)}; accepted: format, why, since_step, is_island and bears_parameters."
            )
        for name, value in values.items():
            accepted = _problem(name, value)
            if accepted is not None:
                raise ConfigError(f"{origin} has {name}={shown(value)}; accepted: {accepted}.")
        return cls(**values)


def shown(value: Any) -> str:
    """Return a value from a file as an error shows it: on one line, and not at any length."""
    return reprlib.repr(value)


def _problem(name: str, value: Any) -> str | None:
    """Say what a field accepts, if it does not accept this value."""
    if name == "since_step":
        return None if is_count(value) else "a whole number, at least 0"
    if name in ("format", "why"):
        return None if isinstance(value, str) and value.strip() else "text that is not empty"
    return None if isinstance(value, bool) else "true or false"
