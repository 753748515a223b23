"""Gradients that were made under the present loss scale and wait for their step."""

from collections.abc import Sequence

from torch.optim import Optimizer

from mp_plugin.numerics.grad_totals import grad_totals
from mp_plugin.numerics.grad_values import local_part
from mp_plugin.scaling.verdict import agree_each, gradients

Snapshot = list[tuple[int, int]]
"""Which gradients an optimizer has, and how often each was written to."""


def snapshot(optimizer: Optimizer) -> Snapshot:
    """Identify an optimizer's gradients; another answer later means that they changed. No sync."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # FSDP2 adds to the local part of a gradient, of which the gradient's own version knows nothing.
    return [(id(grad), local_part(grad)._version) for grad in grads]


class WaitingGradients:
    """Know which optimizers hold gradients that they have not stepped with.

    While one does, the loss scale must not move: what a later backward pass adds to those gradients would be of another
    scale.
    """

    def __init__(self) -> None:
        # What the last backward pass, or unscaling, left in each optimizer's gradients, by the optimizer's id.
        self._left: dict[int, Snapshot] = {}

    def note(self, optimizer: Optimizer) -> None:
        """Remember that this optimizer's gradients, as they are now, wait for its step."""
        self._left[id(optimizer)] = snapshot(optimizer)

    def note_again(self, optimizer: Optimizer) -> None:
        """Remember the gradients as they are now if they wait, as after unscaling them. No sync."""
        if id(optimizer) in self._left:
            self.note(optimizer)

    def forget(self, optimizer: Optimizer) -> None:
        """Note that the optimizer has stepped, or was made to skip."""
        self._left.pop(id(optimizer), None)

    def besides(self, optimizer: Optimizer) -> bool:
        """Whether another optimizer waits too. No sync."""
        return any(known != id(optimizer) for known in self._left)

    def clear(self) -> None:
        """Note that nobody waits any more."""
        self._left.clear()

    def among(self, optimizers: Sequence[Optimizer]) -> list[Optimizer]:
        """Return those optimizers that still wait; all ranks together.

        Gradients that were set to None or to zero wait for nothing. Telling zeros from an edit takes one read of them
        and one sync.
        """
        here = [id(optimizer) in self._left and self._has_something(optimizer) for optimizer in optimizers]
        # If one rank holds something, all wait. A rank that holds nothing takes part, as FSDP may have given it no part
        # of what an optimizer trains.
        waiting = agree_each(here, optimizers)
        return [optimizer for optimizer, waits in zip(optimizers, waiting, strict=True) if waits]

    def _has_something(self, optimizer: Optimizer) -> bool:
        now = snapshot(optimizer)
        if not now or now == self._left[id(optimizer)]:
            return bool(now)
        totals = grad_totals(gradients(optimizer), amax=True)
        return bool((totals.found_inf > 0) | (totals.amax != 0))
