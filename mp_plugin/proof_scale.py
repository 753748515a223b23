"""At which loss scale layers in FP32 would have to cure a step."""

from collections.abc import Callable

from mp_plugin.config import Policy
from mp_plugin.fallback.layers import is_below
from mp_plugin.scaling.guard import Explanation, StepGuard
from mp_plugin.scaling.window import ScaleWindow
from mp_plugin.telemetry.events import Cause


def scale_to_prove_at(
    explanation: Explanation,
    guard: StepGuard,
    look: Callable[[], ScaleWindow | None],
    is_finite_at: Callable[[float], bool | None],
    *,
    is_auto: bool,
) -> float | None:
    """Return the loss scale at which layers in FP32 would have to cure an incident; None if it is none of theirs.

    Mostly the lowest there is: what a lower scale cures needs no layer. But where no scale fits all layers, a lower one
    only lets others vanish, and those that empty the window have to make do with the scale that there is.

    Args:
        explanation: of the incident; what is found out, and a window that is empty, go to its evidence.
        guard: knows the loss scale.
        look: returns the loss scales that fit all layers, if they are known; asked where it makes a difference.
        is_finite_at: whether the step is finite at a lower loss scale; asked if nobody has tried.
        is_auto: whether layers may move at any incident, or only once the scale cannot go lower.
    """
    if explanation.get("operator") is None:
        return None
    lowest = _lowest_scale(guard)
    if explanation["cause"] is Cause.forward:
        return lowest if is_auto else None
    if explanation["cause"] is not Cause.backward:
        return None
    if not is_auto and not guard.falls_back_at_floor:
        return None
    # Not whether the scale would move now: with hysteresis it may stay for a while, and go lower then.
    if guard.loss_scale <= lowest:
        return lowest
    evidence = explanation["evidence"]
    if "backward_finite_at_lower_scale" not in evidence:  # an origin that was known already
        evidence["backward_finite_at_lower_scale"] = is_finite_at(lowest)
    if evidence["backward_finite_at_lower_scale"] is False:
        return lowest
    window = look() if is_auto else None
    if window is None or not _concerns(explanation.get("layer"), window.emptied_by):
        return None
    evidence["scale_window"] = {"lowest": window.lowest, "highest": window.highest, "emptied_by": window.emptied_by}
    return guard.loss_scale


def _lowest_scale(guard: StepGuard) -> float:
    """Return the lowest loss scale that a step could ever have."""
    if guard.scaler is None or guard.scaler.config.policy is Policy.static:
        return guard.loss_scale
    return guard.scaler.config.min_scale


def _concerns(layer: str | None, culprits: tuple[str, ...]) -> bool:
    """Whether an operator of a layer may have to do with the gradients of one of these: it lies inside, or around."""
    return layer is not None and any(is_below(each, layer) or is_below(layer, each) for each in culprits)
