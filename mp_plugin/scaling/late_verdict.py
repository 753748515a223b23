"""What became of a step that nobody waited for, read once the next one has been made."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mp_plugin.numerics.grad_totals import GradTotals
from mp_plugin.numerics.host_copy import HostCopy
from mp_plugin.scaling.verdict import Verdict, gather, read_answers
from mp_plugin.scaling.where import Where
from mp_plugin.telemetry.cause import Evidence, decide_cause


class LateVerdict:
    """The answers of all ranks on their way to the host, and what is needed to tell of an overflow afterwards.

    By the time the next step has been launched they are there, as a rule.

    Args:
        answers: as `ask` leaves them on the device.
        parameters: that have gradients.
        totals: what was read of their gradients.
        losses: that the gradients came from, before scaling.
        loss_scale: what they were multiplied by.
        where: the step was made.

    Example:
        >>> import torch
        >>> from mp_plugin.numerics.grad_totals import grad_totals
        >>> answers, where = torch.tensor([1.0, 0.0, 0.0, 0.0]), Where(batch_idx=0, rank=0)
        >>> late = LateVerdict(answers, [], grad_totals([]), [], 1.0, where)
        >>> late.read().overflowed
        False
    """

    def __init__(
        self,
        answers: Tensor,
        parameters: Sequence[Tensor],
        totals: GradTotals,
        losses: Sequence[Tensor],
        loss_scale: float,
        where: Where,
    ) -> None:
        self.parameters, self.totals, self.losses = parameters, totals, losses
        self.loss_scale, self.where = loss_scale, where
        self._answers = HostCopy(answers)

    def read(self) -> Verdict:
        """Return what all ranks know; waits for the copy, should it not be there yet."""
        return read_answers(self._answers.read())


def explain_late(late: LateVerdict) -> dict[str, Any]:
    """Return what can still be known of an overflow once its batch is over: what its losses say; all ranks together.

    Syncs.
    """
    losses = [loss.float() for loss in late.losses]
    here = [all(bool(each.isfinite().all()) for each in each_loss) for each_loss in (losses, _times(losses, late))]
    finite, scaled_finite = (all(each) for each in zip(*gather(here), strict=True))
    known = Evidence(loss_finite=finite, scaled_loss_finite=scaled_finite) if losses else Evidence()
    evidence = {
        "loss_finite": known.loss_finite,
        "untraced": "seen late",
        "missing": ["its batch was over when it was seen: AdaptivePrecision(exact=True) waits for every step"],
    }
    evidence = {name: value for name, value in evidence.items() if value is not None}
    return {"cause": decide_cause(known), "loss_scale": late.loss_scale, "evidence": evidence}


def _times(losses: Sequence[Tensor], late: LateVerdict) -> list[Tensor]:
    return [loss * late.loss_scale for loss in losses]
