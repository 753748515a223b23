"""How a loss scale moves: pure functions from what happened to what comes next."""

import math
from dataclasses import dataclass, field, replace

from mp_plugin.config import LossScaling, Policy
from mp_plugin.scaling.predictive import AmaxModel, highest_scale, learn_gap, margin, observe

RISE_STEPS = 16
"""Clean steps in a row with room for a higher scale before a predictive scale doubles; then it may at every step."""
BLIND_BACKOFF = 2.0**-16
"""Multiplies a predictive scale on an overflow before any clean step: gradients that fit once tell the level, and 16
bits below the largest number of fp16 they still have 24."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleState:
    """All that a schedule remembers."""

    scale: float
    growth_tracker: int = 0
    """Clean steps since the scale last changed or an overflow was seen; if predictive, with room for more."""
    hysteresis_tracker: int = 1
    """Overflows still tolerated before the scale backs off, this one included."""
    overflows_at_floor: int = 0
    """Overflows in a row at a scale that cannot go lower."""
    model: AmaxModel = field(default_factory=AmaxModel)
    """What a predictive scale knows about the gradients."""
    overflowed_at: float = 0.0
    """The scale at which the batch that is now run again overflowed; 0 when the next batch is another one."""


def initial_state(config: LossScaling) -> ScaleState:
    """Return the state before the first step."""
    return ScaleState(scale=config.init_scale, hysteresis_tracker=config.hysteresis)


def advance(
    state: ScaleState, *, overflowed: bool, config: LossScaling, amax: float = 0.0, run_again: bool = False
) -> ScaleState:
    """Return the state after one optimizer step.

    A clean step counts towards growth, an overflow towards backing off; the scale stays inside
    `[min_scale, max_scale]`. With `hysteresis=1` and within those bounds this is the rule of `torch.amp.GradScaler`.

    Args:
        state: where the schedule was when the step's gradients were made.
        overflowed: whether any rank saw a non-finite gradient.
        config: the limits and factors.
        amax: largest magnitude of the true gradients of all ranks, which a predictive scale learns from.
        run_again: whether the batch that overflowed is run again next.

    Example:
        >>> config = LossScaling(init_scale=8.0)
        >>> advance(initial_state(config), overflowed=True, config=config).scale
        4.0
    """
    if config.policy is Policy.static:
        return replace(state, overflows_at_floor=state.overflows_at_floor + 1 if overflowed else 0)
    if config.policy is Policy.predictive:
        return _missed(state, config, run_again) if overflowed else _predict(state, config, amax)
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


def _predict(state: ScaleState, config: LossScaling, amax: float) -> ScaleState:
    model = state.model
    if 0 < amax < math.inf:
        log2_amax = math.log2(amax)
        if state.overflowed_at:
            model = learn_gap(model, overflowed_at=state.overflowed_at, log2_amax=log2_amax)
        model = observe(model, log2_amax)
    elif model.observed:
        # Nothing was learned, from no gradients or from a batch that had nothing to teach.
        return replace(state, overflows_at_floor=0, overflowed_at=0.0)
    level = min(max(highest_scale(model), config.min_scale), config.max_scale)
    too_high = state.model.too_high_scale if model.observed else 0.0
    state = replace(state, model=model, overflows_at_floor=0, overflowed_at=0.0)
    if too_high:
        # The way back from a blind back-off, short of what overflowed: another batch may have had the larger gradients.
        scale = min(level, max(_power_of_two(too_high / 2), config.min_scale))
        return replace(state, scale=scale, growth_tracker=0)
    if level <= state.scale:
        return replace(state, scale=level, growth_tracker=0)
    clean_steps = state.growth_tracker + 1
    scale = min(_power_of_two(2 * state.scale), level) if clean_steps >= RISE_STEPS else state.scale
    return replace(state, scale=scale, growth_tracker=clean_steps)


def _missed(state: ScaleState, config: LossScaling, run_again: bool) -> ScaleState:
    if state.scale <= config.min_scale:
        return replace(state, growth_tracker=0, overflows_at_floor=state.overflows_at_floor + 1, overflowed_at=0.0)
    model = state.model
    # The forecast missed by more than its margin, nobody knows how much: as far down again, so that a retry will do.
    factor = min(config.backoff_factor, 2.0 ** -margin(model) if model.observed else BLIND_BACKOFF)
    if not model.observed:
        model = replace(model, too_high_scale=max(model.too_high_scale, state.scale))
    elif not run_again:
        model = learn_gap(model, overflowed_at=state.scale, log2_amax=None)
    return replace(
        state,
        scale=max(_power_of_two(state.scale * factor), config.min_scale),
        growth_tracker=0,
        model=model,
        overflowed_at=state.scale if run_again else 0.0,
    )


def _power_of_two(scale: float) -> float:
    return 2.0 ** math.floor(math.log2(scale))
