"""A loss scale as plain numbers, which `torch.amp.GradScaler` understands too."""

import math
from typing import Any

from mp_plugin.checks import is_count, is_number
from mp_plugin.config import LossScaling, Policy
from mp_plugin.errors import CheckpointError
from mp_plugin.scaling.predictive import AmaxModel, load_model, save_model
from mp_plugin.scaling.schedule import ScaleState, initial_state


def pack_scale(state: ScaleState, config: LossScaling) -> dict[str, Any]:
    """Return a state under the names of `GradScaler`, and what it knows nothing of under names that stand alone."""
    return {
        "scale": state.scale,
        "growth_factor": config.growth_factor,
        "backoff_factor": config.backoff_factor,
        "growth_interval": config.growth_interval,
        "_growth_tracker": state.growth_tracker,
        "hysteresis_tracker": state.hysteresis_tracker,
        "overflows_at_floor": state.overflows_at_floor,
        **save_model(state.model),
    }


def unpack_scale(state_dict: Any, config: LossScaling) -> ScaleState:
    """Return the state that `pack_scale` or a `GradScaler` wrote, within the limits that are configured now.

    Raises:
        CheckpointError: for a missing, unknown or impossible value.
    """
    if not isinstance(state_dict, dict):
        raise CheckpointError(f"The loss scaler state is {state_dict!r}; accepted: a dict.")
    known = set(pack_scale(initial_state(config), config))
    if unknown := [key for key in state_dict if key not in known]:
        raise CheckpointError(f"The loss scaler state has unknown {unknown!r}; accepted: {sorted(known)}.")
    scale: Any = state_dict.get("scale")
    if not is_number(scale, lowest=math.nextafter(0, 1)):
        raise CheckpointError(f"The loss scaler state has scale={scale!r}; accepted: a finite number above 0.")
    # A GradScaler knows no hysteresis and no floor.
    counts = {"hysteresis_tracker": config.hysteresis, "overflows_at_floor": 0, **state_dict}
    for key in ("_growth_tracker", "hysteresis_tracker", "overflows_at_floor"):
        if not is_count(counts.get(key)):
            raise CheckpointError(
                f"The loss scaler state has {key}={counts.get(key)!r}; accepted: a whole number, at least 0."
            )
    model = load_model(state_dict)
    if config.policy is not Policy.predictive:
        model = AmaxModel()  # it would be out of date when a predictive run goes on
    elif not model.observed:
        counts["_growth_tracker"] = 0  # it counted something else
    if config.policy is Policy.static:
        scale = config.init_scale
    return ScaleState(
        scale=min(max(float(scale), config.min_scale), config.max_scale),
        growth_tracker=counts["_growth_tracker"],
        hysteresis_tracker=min(counts["hysteresis_tracker"], config.hysteresis),
        overflows_at_floor=counts["overflows_at_floor"],
        model=model,
    )
