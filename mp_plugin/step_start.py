"""Where a training step began, to go back to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import lightning.pytorch as pl

from mp_plugin.batch import BatchStart
from mp_plugin.buffers import LastGoodBuffers
from mp_plugin.copy_on_write import WriteWatch
from mp_plugin.module_state import remember_counts
from mp_plugin.random_state import RandomState, capture_random_state
from mp_plugin.telemetry.writers import storage_of

LARGEST_WINDOW = 2**28
"""Bytes of batches that are held until their window of accumulated batches is over, so as to look at them again."""


class MicroBatch:
    """One forward and backward pass: its batch, and the random streams it began with."""

    def __init__(self, batch: Any, batch_idx: int) -> None:
        self.batch = batch
        self.batch_idx = batch_idx
        self.start = BatchStart(batch)
        self.random_state: RandomState | None = None


class StepStart:
    """Where a training step, or a window of accumulated ones, began: batches, buffers, random streams.

    Args:
        module: what trains.
        may_step_again: whether a batch may be run again to step with its gradients.
        is_traced: whether it may be run again to be looked at; without either, nothing random is remembered.
        remembers_counts: whether to remember what was logged and measured before each step.
    """

    def __init__(
        self,
        module: "pl.LightningModule",
        *,
        may_step_again: bool,
        is_traced: bool = False,
        remembers_counts: bool = False,
    ) -> None:
        self.module = module
        self.buffers = LastGoodBuffers(module)
        # In manual optimization there is no closure, and a step that takes the iterator would take the next batch.
        self.can_run_again = (
            module.automatic_optimization and "dataloader_iter" not in signature(module.training_step).parameters
        )
        self.may_step_again = may_step_again and self.can_run_again
        """Whether a step may be run again for its gradients."""
        self._remembers_random_state = self.can_run_again and (is_traced or may_step_again)
        self._remembers_counts = remembers_counts and self.can_run_again
        self.forward_passes = 0
        self.window: list[MicroBatch] = []
        """The batches of this step that are still held, newest last."""
        self.is_rehearsing = False
        """Whether a forward pass now is a diagnosis, of which nothing may be remembered."""
        self.may_edit_after_backward = False
        """Whether somebody has filled in `on_after_backward`."""
        self.edits_after_backward = False
        """Whether that hook has written to gradients, so that they are not right without it."""
        self._writes_through_data: bool | None = None
        self._is_marked = False
        self._counters: dict[str, Any] = {}
        self._restore_counts: Callable[[], None] | None = None

    @property
    def is_single(self) -> bool:
        """Whether a step is one batch, and no window of accumulated ones, of which its closure holds the last only."""
        return self.module.trainer.accumulate_grad_batches == 1

    def next_batch(self, batch: Any, batch_idx: int) -> None:
        """Call for each batch, when all hooks have seen it and before its first forward pass."""
        in_window = self.module.automatic_optimization and batch_idx % self.module.trainer.accumulate_grad_batches
        if not in_window:
            self._is_marked = False
            self.window.clear()
        self.window.append(MicroBatch(batch, batch_idx))
        while len(self.window) > 1 and sum(each.start.nbytes for each in self.window) > LARGEST_WINDOW:
            self.window.pop(0)

    def mark(self) -> None:
        """Call before each forward pass: the first one of a window is where it began."""
        if self.is_rehearsing:
            return
        self.forward_passes += 1
        if self._remembers_random_state and self.window and self.window[-1].random_state is None:
            self.window[-1].random_state = capture_random_state(self.module.device)
        if self._is_marked:
            return
        self._is_marked = True
        self.buffers.save()
        self._counters = _counters_of(self.module)
        self._restore_counts = remember_counts(self.module) if self._remembers_counts else None

    def forget_counts(self) -> None:
        """Go back to what was logged and measured before the step, if that was remembered."""
        if self._restore_counts is not None:
            self._restore_counts()

    def done(self) -> None:
        """The step was taken or skipped: the next forward pass begins a new one."""
        self._is_marked = False
        self.window.clear()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Forward passes in this block are no part of the training."""
        self.is_rehearsing = True
        # Whoever remembers what a module keeps puts them back afterwards.
        vars(self.module).update(self._counters)
        try:
            yield
        finally:
            self.is_rehearsing = False

    @contextmanager
    def noticing_edits(self) -> Iterator[None]:
        """Notice whether the block, which calls the hooks after a backward pass, writes to gradients in place.

        The first time under a watch for every write: who writes to `.data` sometimes, and not then, goes unnoticed.
        """
        if not (self.may_edit_after_backward and self.may_step_again):
            yield
            return
        before = self._gradient_versions()
        if self._writes_through_data is None:
            # Writing to `.data` leaves no trace but to a watch, which is too slow for every step.
            gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
            with WriteWatch(gradients) as watch:
                yield
            self._writes_through_data = watch.saw_write
        else:
            yield
        self.edits_after_backward = self._writes_through_data or before != self._gradient_versions()

    def _gradient_versions(self) -> list[tuple[int, int, int]]:
        grads = [parameter.grad for parameter in self.module.parameters()]
        return [(0, 0, 0) if grad is None else (id(grad), grad._version, storage_of(grad)) for grad in grads]

    @property
    def is_window_whole(self) -> bool:
        """Whether all batches of this step so far are still held."""
        places = self.module.trainer.accumulate_grad_batches if self.module.automatic_optimization else 1
        return bool(self.window) and len(self.window) == self.window[-1].batch_idx % places + 1

    def restore_batches(self) -> bool:
        """Undo what the step did to its batches; False if that is not possible."""
        restored = [micro_batch.start.restore() for micro_batch in self.window]
        return all(restored)

    def restore_buffers(self) -> None:
        """Undo what a forward pass that overflowed wrote."""
        if self.module.automatic_optimization:
            self.buffers.restore()
        else:
            # Other optimizers of the same training step may have stepped: what they learned stays.
            self.buffers.restore_non_finite()

    def rewind(self) -> None:
        """Go back to where the step began."""
        self.buffers.restore()
        if self.window and self.window[0].random_state is not None:
            self.window[0].random_state.restore()


def _counters_of(module: "pl.LightningModule") -> dict[str, Any]:
    """Return the numbers that a module keeps as attributes: a training step counts with them, and warms up by them."""
    return {name: value for name, value in vars(module).items() if type(value) in (bool, int, float)}
