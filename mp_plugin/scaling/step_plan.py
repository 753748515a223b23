"""What happens to the gradients between the backward pass and the optimizer step, and who waits for it."""

from dataclasses import dataclass
from enum import Enum


class Route(str, Enum):
    """A way from the gradients of a scaled loss to the step."""

    folded = "folded"
    """Nothing touches the gradients: the fused optimizer divides them by what loss scale and clipping ask for."""
    one_pass = "one pass"
    """One multiplication unscales and clips."""
    separate = "separate"
    """Unscaled first, for those who look at them or edit them; then clipped."""


WORDS = {
    Route.folded: "folded into the optimizer",
    Route.one_pass: "clipped in one pass",
    Route.separate: "checked separately",
}
"""What happens to gradients on each route, for those who know no routes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """How one optimizer step is made."""

    route: Route = Route.separate
    max_norm: float | None = None
    """What the norm of all true gradients is clipped to, where unscaling and clipping are one."""
    is_exact: bool = True
    """Whether the verdict is known before the step; else the device decides, and the host learns of it a step later."""

    def __str__(self) -> str:
        return WORDS[self.route] + ("" if self.is_exact else ", verdict one step later")

    @property
    def is_unattended(self) -> bool:
        """Whether nobody looks at the gradients before the step."""
        return self.route is not Route.separate


SEPARATE = StepPlan()


def plan_step(
    *, is_attended: bool, clips_by_value: bool, max_norm: float | None, is_foldable: bool, is_exact: bool
) -> StepPlan:
    """Choose the route that touches the gradients least.

    Args:
        is_attended: whether a hook, a callback or another optimizer may look at gradients before the step, or they are
            of a kind that only the separate route knows, such as sharded ones.
        clips_by_value: whether every number is clipped by itself.
        max_norm: what the norm is clipped to; None without clipping by norm.
        is_foldable: whether the optimizer divides the gradients itself, as fused ones do.
        is_exact: whether the verdict must be known before the step.

    Example:
        >>> options = {"clips_by_value": False, "max_norm": 1.0, "is_exact": True}
        >>> plan_step(is_attended=False, is_foldable=True, **options).route.value
        'folded'
        >>> plan_step(is_attended=False, is_foldable=False, **options).route.value
        'one pass'
        >>> plan_step(is_attended=True, is_foldable=True, **options).route.value
        'separate'
    """
    if is_attended or clips_by_value:
        return SEPARATE
    if is_foldable:
        return StepPlan(route=Route.folded, max_norm=max_norm, is_exact=is_exact)
    # Without clipping the check unscales in its own pass, where there is a scale.
    return SEPARATE if max_norm is None else StepPlan(route=Route.one_pass, max_norm=max_norm)


def is_exact(exact: bool | None, *, is_free: bool, needs_batch: bool, is_steady: bool) -> bool:
    """Decide whether the verdict must be known before the step, should the route leave a choice.

    Args:
        exact: what the user asked for; None for what is best.
        is_free: whether waiting costs nothing, as on the CPU.
        needs_batch: whether an incident is worth more than its skip, as its batch proves a cure.
        is_steady: whether nothing has gone wrong for a while.

    Example:
        >>> is_exact(None, is_free=False, needs_batch=False, is_steady=True)
        False
    """
    return exact if exact is not None else is_free or needs_batch or not is_steady
