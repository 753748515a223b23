"""When to give up a run, and what is said then."""

from mp_plugin.config import Policy
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.telemetry.events import Action, Cause, Incident


def stop_if_hopeless(incident: Incident, scaler: LossScaler | None, *, patience: int, scale_is_to_blame: bool) -> None:
    """Stop a run whose weights are lost, or that has skipped too many steps in a row.

    Args:
        incident: of the step that was just skipped.
        scaler: of the loss; None without loss scaling.
        patience: how many skipped steps in a row are too many.
        scale_is_to_blame: whether a lower loss scale could have helped.

    Raises:
        TrainingDivergedError: if so.
    """
    lost = incident.evidence.get("weights")
    if incident.cause is Cause.weights and lost:
        raise TrainingDivergedError(
            f"{incident}; {len(lost)} weights, {lost[0]!r} among them, were not finite before this "
            "step, so that no later step can be good; go back to an earlier checkpoint."
        )
    if incident.action is Action.raise_:
        raise TrainingDivergedError(_in_a_row(incident, scaler, patience, scale_is_to_blame))


def _in_a_row(incident: Incident, scaler: LossScaler | None, patience: int, scale_is_to_blame: bool) -> str:
    floor = remedy = ""
    if scaler is not None:
        bound = "init_scale" if scaler.config.policy is Policy.static else "min_scale"
        lower = f"; a lower LossScaling.{bound} gives the gradients more room" if scale_is_to_blame else ""
        remedy = f"{lower}; LossScaling(at_min_scale='skip') goes on regardless"
        floor = f", at a loss scale of {scaler.get_scale():,.15g} that cannot go lower" if scale_is_to_blame else ""
    return (
        f"{incident}; {patience} such steps in a row{floor}. The weights are those of the last step that was taken. "
        f"Look at the data, the learning rate and the forward pass{remedy}. Parameters with {incident.kind} gradients: "
        f"{', '.join(incident.parameters)}."
    )
