"""What a run measured of its drift from FP32, as points to draw."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mp_plugin.checks import is_number
from mp_plugin.telemetry.store import Run

MEASURES = ("logits_relative_error", "changed_predictions", "loss_difference")


@dataclass(frozen=True, kw_only=True)
class DriftPoint:
    """One measurement."""

    step: int
    values: Mapping[str, float]
    """By measure, of those that are known."""
    lost: tuple[str, ...]
    """Measures without a value because the run's own pass was not finite where that in FP32 was."""


def drift_points(run: Run) -> list[DriftPoint]:
    """Return the measurements of a run, oldest first; events that are of another shape are left out."""
    events = [event for event in run.events if event.get("event") == "drift" and is_number(event.get("step"), lowest=0)]
    return [_point(event) for event in events]


def _point(event: Mapping[str, Any]) -> DriftPoint:
    values = {name: event[name] for name in MEASURES if _is_known(event.get(name))}
    is_lost = {
        "logits_relative_error": is_number(event.get("lost_logits"), lowest=1),
        "loss_difference": _is_known(event.get("fp32_loss")) and not _is_known(event.get("loss")),
    }
    lost = tuple(name for name in MEASURES if name not in values and is_lost.get(name))
    return DriftPoint(step=event["step"], values=values, lost=lost)


def _is_known(value: Any) -> bool:
    return is_number(value, lowest=-math.inf)
