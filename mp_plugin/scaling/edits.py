"""Gradients that change after they were found to be finite."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer

from mp_plugin.numerics.grad_stats import local_part

Snapshot = list[tuple[int, int]]
"""Which gradients an optimizer has, and how often each was written to."""


def snapshot(optimizer: Optimizer) -> Snapshot:
    """Identify an optimizer's gradients; another answer later means that they changed. No sync."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # FSDP2 adds to the local part of a gradient, of which the gradient's own version knows nothing.
    return [(id(grad), local_part(grad)._version) for grad in grads]


class CheckedGradients:
    """Know whether an optimizer's gradients are still those that were checked.

    What is written through `Tensor.data` leaves no trace in a tensor's version count, and goes unseen.
    """

    def __init__(self) -> None:
        self._checked: dict[int, Snapshot] = {}

    def note(self, optimizer: Optimizer) -> None:
        """Remember the gradients as they are now. No sync."""
        self._checked[id(optimizer)] = snapshot(optimizer)

    def note_unless_known(self, optimizer: Optimizer) -> None:
        """Remember the gradients as they are now, if they were not remembered since the last step. No sync."""
        if id(optimizer) not in self._checked:
            self.note(optimizer)

    def are_edited(self, optimizer: Optimizer) -> bool:
        """Whether somebody has written to them since. No sync."""
        return id(optimizer) in self._checked and snapshot(optimizer) != self._checked[id(optimizer)]

    def forget(self, optimizer: Optimizer) -> None:
        """Note that they were used, or are of no use."""
        self._checked.pop(id(optimizer), None)

    @contextmanager
    def harmless_edit(self, optimizer: Optimizer) -> Iterator[None]:
        """Let this block change them: clipping makes nothing non-finite out of what is finite."""
        counts = id(optimizer) in self._checked and not self.are_edited(optimizer)
        yield
        if counts:
            self.note(optimizer)
