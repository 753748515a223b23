"""The precisions a run can be trained in, by name."""

from dataclasses import dataclass

from mp_plugin.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """What one precision name stands for."""

    name: str
    """Lightning's own spelling, such as `16-mixed`: what `trainer.precision` shows."""
    weights: str
    """Number format of the parameters: fp32, bf16 or fp16."""
    compute: str
    """Number format of matrix products and convolutions: fp32, tf32, bf16 or fp16."""
    scales_loss: bool = False
    """Whether gradients need a loss scale to stay above fp16's smallest number."""

    @property
    def is_mixed(self) -> bool:
        """Whether autocast chooses the format operator by operator."""
        return self.weights == "fp32" and self.compute in ("bf16", "fp16")


MODES = {
    mode.name: mode
    for mode in (
        Mode(name="32-true", weights="fp32", compute="fp32"),
        Mode(name="tf32", weights="fp32", compute="tf32"),
        Mode(name="bf16-mixed", weights="fp32", compute="bf16"),
        Mode(name="16-mixed", weights="fp32", compute="fp16", scales_loss=True),
        Mode(name="bf16-true", weights="bf16", compute="bf16"),
        Mode(name="16-true", weights="fp16", compute="fp16"),
    )
}

ALIASES = {
    "fp32": "32-true",
    "32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "16": "16-mixed",
    "bf16_true": "bf16-true",
    "fp16_true": "16-true",
}


def parse_mode(precision: str | int) -> Mode:
    """Return the mode for a precision name, short name or Lightning's 16 and 32.

    Args:
        precision: one of `MODES` or `ALIASES`.

    Raises:
        ConfigError: for any other value.

    Example:
        >>> parse_mode("fp16").name
        '16-mixed'
    """
    # bool is an int, and True would otherwise read as a name.
    name = "" if isinstance(precision, bool) else str(precision)
    mode = MODES.get(ALIASES.get(name, name))
    if mode is None:
        accepted = ", ".join(repr(known) for known in [*MODES, *(a for a in ALIASES if not a.isdigit())])
        raise ConfigError(f"precision={precision!r} is unknown; accepted: {accepted}.")
    return mode
