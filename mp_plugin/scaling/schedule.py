"""How a loss scale moves: pure functions from what happened to what comes next."""

from dataclasses import dataclass, replace

from mp_plugin.config import LossScaling, Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleState:
    """All that a schedule remembers."""

    scale: float
    growth_tracker: int = 0
    """Clean steps since the scale last changed or an overflow was seen."""
    hysteresis_tracker: int = 1
    """Overflows still tolerated before the scale backs off, this one included."""
    overflows_at_floor: int = 0
    """Overflows in a row at a scale that cannot go lower."""


def initial_state(config: LossScaling) -> ScaleState:
    """Return the state before the first step."""
    return ScaleState(scale=config.init_scale, hysteresis_tracker=config.hysteresis)


def advance(state: ScaleState, *, overflowed: bool, config: LossScaling) -> ScaleState:
    """Return the state after one optimizer step.

    A clean step counts towards growth, an overflow towards backing off; the scale stays inside
    `[min_scale, max_scale]`. With `hysteresis=1` and within those bounds this is the rule of `torch.amp.GradScaler`.

    Args:
        state: where the schedule was when the step's gradients were made.
        overflowed: whether any rank saw a non-finite gradient.
        config: the limits and factors.

    Example:
        >>> config = LossScaling(init_scale=8.0)
        >>> advance(initial_state(config), overflowed=True, config=config).scale
        4.0
    """
    if config.policy is Policy.static:
        return replace(state, overflows_at_floor=state.overflows_at_floor + 1 if overflowed else 0)
    if overflowed:
        return _after_overflow(state, config)
    return _after_clean_step(state, config)


def _after_overflow(state: ScaleState, config: LossScaling) -> ScaleState:
    if state.scale <= config.min_scale:
        return replace(state, growth_tracker=0, overflows_at_floor=state.overflows_at_floor + 1)
    if state.hysteresis_tracker > 1:
        return replace(state, growth_tracker=0, hysteresis_tracker=state.hysteresis_tracker - 1)
    lowered = max(state.scale * config.backoff_factor, config.min_scale)
    return ScaleState(scale=lowered, hysteresis_tracker=config.hysteresis)


def _after_clean_step(state: ScaleState, config: LossScaling) -> ScaleState:
    clean_steps = state.growth_tracker + 1
    if clean_steps < config.growth_interval:
        return replace(state, growth_tracker=clean_steps, overflows_at_floor=0)
    raised = min(state.scale * config.growth_factor, config.max_scale)
    return ScaleState(scale=raised, hysteresis_tracker=config.hysteresis)
