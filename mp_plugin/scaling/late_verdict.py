"""What became of a step that nobody waited for, read once the next one has been made."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mp_plugin.numerics.grad_totals import GradTotals
from mp_plugin.numerics.host_copy import HostCopy
from mp_plugin.scaling.verdict import Verdict, read_answers
from mp_plugin.scaling.where import Where
from mp_plugin.telemetry.events import Cause


class LateVerdict:
    """The answers of all ranks on their way to the host, and what is needed to tell of an overflow afterwards.

    By the time the next step has been launched they are there, as a rule.

    Args:
        answers: as `ask` leaves them on the device.
        parameters: that have gradients.
        totals: what was read of their gradients.
        loss_scale: what the losses were multiplied by.
        where: the step was made.

    Example:
        >>> import torch
        >>> from mp_plugin.numerics.grad_totals import grad_totals
        >>> answers, where = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]), Where(batch_idx=0, rank=0)
        >>> late = LateVerdict(answers, [], grad_totals([]), 1.0, where)
        >>> late.read().overflowed
        False
    """

    def __init__(
        self, answers: Tensor, parameters: Sequence[Tensor], totals: GradTotals, loss_scale: float, where: Where
    ) -> None:
        self.parameters, self.totals = parameters, totals
        self.loss_scale, self.where = loss_scale, where
        self._answers = HostCopy(answers)

    def read(self) -> Verdict:
        """Return what all ranks know; waits for the copy, should it not be there yet."""
        return read_answers(self._answers.read())


def explain_late(verdict: Verdict, late: LateVerdict) -> dict[str, Any]:
    """Return what can still be known of an overflow once its batch is over: whether its loss was finite."""
    why = "its batch was over when it was seen: AdaptivePrecision(exact=True) waits for every step"
    return {
        # A loss that is not finite may come from the batch, from the weights or from the forward pass.
        "cause": Cause.backward if verdict.loss_is_finite else Cause.unknown,
        "loss_scale": late.loss_scale,
        "evidence": {"loss_finite": verdict.loss_is_finite, "untraced": "seen late", "missing": [why]},
    }
