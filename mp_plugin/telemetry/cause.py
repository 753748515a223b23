"""From evidence to the one cause of an incident."""

import re
from dataclasses import dataclass

from mp_plugin.telemetry.events import Cause, Direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is known about a step whose gradients are not finite; None where nobody could look."""

    batch_finite: bool | None = None
    """Whether the batch holds neither NaN nor Inf; -Inf may be a mask."""
    weights_finite: bool | None = None
    """Whether every parameter was finite before the step."""
    loss_finite: bool | None = None
    scaled_loss_finite: bool | None = None
    origin_in_batch: bool = False
    """The trace led to a tensor of the batch."""
    origin_in_weights: bool = False
    """The trace led to a parameter or a buffer."""
    origin_in_scaling: bool = False
    """The trace led to the product of loss and scale."""
    direction: Direction | None = None
    """The pass in which the traced origin ran; None without one."""


def is_beyond_any_scale(reason: str | None) -> bool:
    """Whether no loss scale changes what an operator did: a division by zero is one for every numerator.

    Example:
        >>> is_beyond_any_scale("invalid: 0/0"), is_beyond_any_scale("overflow: 131,072 is beyond the largest ...")
        (True, False)
    """
    return reason is not None and re.search(r"0/0|by zero", reason) is not None


def decide_cause(evidence: Evidence) -> Cause:
    """Decide by the first piece of evidence that speaks: batch, weights, forward pass, scaled loss, backward pass.

    A traced origin speaks for itself: a batch may hold a NaN that the step knows to mask. Without one a finite loss
    says that neither the batch nor the forward pass is to blame.

    Example:
        >>> decide_cause(Evidence(batch_finite=False, loss_finite=False)).value
        'data'
        >>> decide_cause(Evidence(batch_finite=True, loss_finite=True, scaled_loss_finite=True)).value
        'backward'
    """
    is_traced = evidence.direction is not None
    lost_in_forward = evidence.loss_finite is False
    if evidence.origin_in_batch or (not is_traced and lost_in_forward and evidence.batch_finite is False):
        return Cause.data
    if evidence.origin_in_weights or evidence.weights_finite is False:
        return Cause.weights
    if evidence.origin_in_scaling:
        return Cause.loss
    if is_traced:
        return Cause.forward if evidence.direction is Direction.forward else Cause.backward
    if evidence.loss_finite is None:
        return Cause.unknown
    if lost_in_forward:
        return Cause.forward
    return Cause.loss if evidence.scaled_loss_finite is False else Cause.backward
