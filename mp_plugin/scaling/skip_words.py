"""What is said of a step that was not taken."""

from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.telemetry.events import Action, Incident


def consequence(incident: Incident, scaler: LossScaler | None) -> str:
    """Say what follows from an incident."""
    action = incident.action
    if action is Action.zeroed:
        return "gradients of the second closure call zeroed"
    if action is Action.raise_:
        return "run stopped"
    if action is Action.fallback:
        return f"{', '.join(incident.culprits)} in fp32, batch run again"
    if scaler is None or action not in (Action.backoff, Action.retry):
        return "step skipped"
    lowered = f"loss scale lowered to {scaler.state_if_overflowed().scale:,.15g}"
    return f"{lowered}, batch run again" if action is Action.retry else f"step skipped, {lowered}"
