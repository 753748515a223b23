"""Ratios of times that were taken in turn."""

from collections.abc import Sequence

from helpers.harness import spread


def ratios(samples: Sequence[float], beside: Sequence[float]) -> dict[str, float]:
    """Return the spread of ratios, each taken within a round: what slows down a machine slows down both."""
    return spread([sample / other for sample, other in zip(samples, beside, strict=True)])
