r"""How large will the next gradients be? A running normal over log2 of the largest magnitude, in pure functions.

The largest magnitude of all true gradients of a step, in bits, $m_t = \log_2 \max_i |g_i|$, is forecast by its
exponentially weighted mean $\mu$; the spread $\sigma$ is the weighted root mean square of the forecast's own errors, so
that a drift widens it too. The scale that overflows with a chance of at most `OVERFLOW_CHANCE` is then

$$2^{\lfloor \log_2 65504 - (\mu + z \sigma) - \mathrm{gap} \rfloor}, \quad z = \Phi^{-1}(1 - \mathrm{chance}).$$

Inside the backward pass a gradient may be larger than every gradient of a parameter. By how many bits, the gap, cannot
be read off the parameters; only an overflow tells, and gives a lower bound.
"""

import math
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

from mp_plugin.checks import is_count, is_number
from mp_plugin.errors import CheckpointError
from mp_plugin.formats import FORMATS

OVERFLOW_CHANCE = 1e-6
"""Accepted chance of an overflow per step: a hundredth of one in 10,000 steps."""
Z = -NormalDist().inv_cdf(OVERFLOW_CHANCE)
"""The same in spreads above the mean: 4.75."""
MEAN_RATE = 1 / 32
"""Weight of the newest step in the mean. On recorded runs 1/16 to 1/128 forecast equally well."""
SPREAD_RATE = 1 / 512
"""Weight of the newest step in the squared spread: a tail is learned from more steps than a level."""
PRIOR_SPREAD = 1.0
"""Spread in bits before anything is known; recorded runs had 0.4 to 0.8."""
PRIOR_STEPS = 16
"""Steps' worth of evidence that the prior spread counts for."""
GAP_STEPS = 10_000
"""Steps after which one bit of a gap is given back, since nothing but another overflow could tell that it is gone."""

_BITS = 2.0**16
"""More than any gradient, error squared or gap can have: fp32 spans 277 bits."""
LOG2_MAX = math.log2(FORMATS["fp16"].max)


@dataclass(frozen=True, kw_only=True, slots=True)
class AmaxModel:
    """All that is known about the size of gradients, in bits."""

    observed: int = 0
    """Steps seen."""
    mean: float = 0.0
    """Forecast of log2 of the largest magnitude; means nothing before the first step."""
    variance: float = PRIOR_SPREAD**2
    """Square of the forecast's spread."""
    gap: float = 0.0
    """Bits by which gradients inside the backward pass may be larger than those of parameters."""
    too_high_scale: float = 0.0
    """Highest scale that overflowed while no step had been seen; 0 if there is none, and once there is a step."""


def observe(model: AmaxModel, log2_amax: float) -> AmaxModel:
    """Return the model after one more step with finite gradients.

    Args:
        model: what is known so far.
        log2_amax: log2 of the largest magnitude of the step's true gradients; finite.

    Example:
        >>> model = observe(AmaxModel(), -3.0)
        >>> model.mean, model.variance, highest_scale(model)
        (-3.0, 1.0, 16384.0)
    """
    gap = max(model.gap - 1 / GAP_STEPS, 0.0)
    if model.observed == 0:
        return AmaxModel(observed=1, mean=log2_amax, variance=model.variance, gap=gap)
    error = log2_amax - model.mean
    spread_weight = max(1 / (model.observed + PRIOR_STEPS), SPREAD_RATE)
    return AmaxModel(
        observed=model.observed + 1,
        mean=model.mean + max(1 / (model.observed + 1), MEAN_RATE) * error,
        variance=model.variance + spread_weight * (error**2 - model.variance),
        gap=gap,
    )


def margin(model: AmaxModel) -> float:
    """Return the bits between the forecast and the largest magnitude to be expected."""
    return Z * math.sqrt(model.variance)


def highest_scale(model: AmaxModel) -> float:
    """Return the highest power of two whose chance of an overflow is small enough; before the first step, infinity."""
    if model.observed == 0:
        return math.inf
    return 2.0 ** math.floor(LOG2_MAX - model.mean - margin(model) - model.gap)


def learn_gap(model: AmaxModel, *, overflowed_at: float, log2_amax: float | None) -> AmaxModel:
    """Return the model after an overflow that the gradients of parameters do not explain.

    Args:
        model: what was known before the batch.
        overflowed_at: the scale at which the batch overflowed.
        log2_amax: what the same batch showed at a lower scale; None if it was not run again. Then it counts as the
            largest expected, and the gap grows by one bit at most: the batch may have been bad at every scale.

    Example:
        >>> learn_gap(AmaxModel(observed=1, mean=-3.0), overflowed_at=2.0**14, log2_amax=-3.0).gap > 5.99
        True
    """
    if log2_amax is not None:
        unexplained = LOG2_MAX - log2_amax - math.log2(overflowed_at)
        # The highest scale that would have done is a power of two lower.
        at_least = unexplained + 1 if unexplained > 0 else 0.0
    else:
        # Half a bit puts the next scale below the one that overflowed, whatever the rounding.
        at_least = LOG2_MAX - model.mean - margin(model) - math.log2(overflowed_at) + 0.5
        at_least = min(at_least, model.gap + 1)
    return replace(model, gap=max(model.gap, at_least))


def save_model(model: AmaxModel) -> dict[str, Any]:
    """Return the model as plain numbers, under names that stand alone."""
    return {f"amax_{name}": value for name, value in asdict(model).items()}


def load_model(state: dict[str, Any]) -> AmaxModel:
    """Return the model that `save_model` put into a state; one that knows nothing if there is none.

    Raises:
        CheckpointError: for a missing or impossible value.
    """
    saved = {name: state[f"amax_{name}"] for name in AmaxModel.__slots__ if f"amax_{name}" in state}
    if not saved:
        return AmaxModel()
    if not is_count(saved.get("observed")):
        raise CheckpointError(
            f"The loss scaler state has amax_observed={saved.get('observed')!r}; accepted: a whole number, at least 0."
        )
    for name, lowest in (("mean", -_BITS), ("variance", 0.0), ("gap", 0.0)):
        if not is_number(saved.get(name), lowest=lowest, highest=_BITS):
            raise CheckpointError(
                f"The loss scaler state has amax_{name}={saved.get(name)!r}; accepted: a number, "
                f"{lowest:.15g} to {_BITS:.15g}."
            )
    # Checkpoints of earlier releases lack it.
    scale = saved.get("too_high_scale", 0.0)
    if not is_number(scale, lowest=0):
        raise CheckpointError(
            f"The loss scaler state has amax_too_high_scale={scale!r}; accepted: a finite number, at least 0."
        )
    return AmaxModel(**saved)
