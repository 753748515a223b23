"""Run a training step again on the same batch, as if it were the first time."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import lightning.pytorch as pl
from torch.nn import Module
from torchmetrics import Metric

from mp_plugin.batch import BatchStart
from mp_plugin.buffers import LastGoodBuffers
from mp_plugin.instance import replace_attribute
from mp_plugin.random_state import capture_random_state
from mp_plugin.scaling.verdict import gather

log = logging.getLogger(__name__)


class StepStart:
    """Where a training step, or a window of accumulated ones, began: batch, buffers, random streams, to go back to.

    Args:
        module: what trains.
        retries: times a batch may be run again; 0 saves the cost of remembering what only that needs.
    """

    def __init__(self, module: "pl.LightningModule", *, retries: int) -> None:
        self.module = module
        self.buffers = LastGoodBuffers(module)
        # In manual optimization there is no closure, and a step that takes the iterator would take the next batch.
        is_closed = (
            module.automatic_optimization and "dataloader_iter" not in signature(module.training_step).parameters
        )
        self._retries = retries if is_closed else 0
        self.forward_passes = 0
        self._is_marked = False
        self._batch: BatchStart | None = None
        self._restore_random_state: Callable[[], None] | None = None

    @property
    def retries(self) -> int:
        """Times this batch may be run again: never in a window, of which the closure holds the last batch only."""
        return self._retries if self.module.trainer.accumulate_grad_batches == 1 else 0

    def next_batch(self, batch: Any, batch_idx: int) -> None:
        """Call for each batch, when all hooks have seen it and before its first forward pass."""
        if self.module.automatic_optimization and batch_idx % self.module.trainer.accumulate_grad_batches:
            return  # in the middle of a window
        self._is_marked = False
        self._batch = BatchStart(batch) if self.retries else None

    def mark(self) -> None:
        """Call before each forward pass: the first one of a window is where it began."""
        self.forward_passes += 1
        if self._is_marked:
            return
        self._is_marked = True
        self.buffers.save()
        self._restore_random_state = capture_random_state(self.module.device) if self.retries else None

    def done(self) -> None:
        """The step was taken or skipped: the next forward pass begins a new one."""
        self._is_marked, self._batch = False, None

    def restore_batch(self) -> bool:
        """Undo what the step did to its batch; False if that is not possible."""
        return self._batch is None or self._batch.restore()

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
        if self._restore_random_state is not None:
            self._restore_random_state()


def may_run_again(start: StepStart | None, retries: int) -> bool:
    """Whether the batch of this step may be run once more, after so many times; puts the batch back if so.

    All ranks together: what one of them cannot run again, none does.
    """
    if start is None or retries >= start.retries:
        return False
    is_back = all(gather(start.restore_batch()))
    if not is_back:
        log.warning("training_step writes to its batch in place, so that an overflowed batch cannot be run again.")
    return is_back


@contextmanager
def run_again(start: StepStart | None) -> Iterator[None]:
    """Go back to where a step began, and let the block run it again: what it logs and measures counts once.

    The first run has logged already; the state of torchmetrics that the module owns is put back afterwards.
    """
    assert start is not None, "a step is run again within a fit only"
    module = start.module
    metrics = [(metric, _state(metric)) for metric in module.modules() if isinstance(metric, Metric)]
    undo = replace_attribute(module, "log", _log_nothing)
    start.rewind()
    try:
        yield
    finally:
        undo()
        for metric, state in metrics:
            vars(metric).update(state)


def known_at_first(result: Any, again: Callable[[], Any]) -> Callable[[], Any]:
    """Return a closure whose first call gives a result that is there already, and whose later calls run `again`."""
    results = iter([result])

    def closure() -> Any:
        for known in results:
            return known
        return again()

    return closure


def _log_nothing(*_: Any, **__: Any) -> None:
    pass


def _state(metric: Module) -> dict[str, Any]:
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]  # type: ignore[misc]
    return {name: copy.deepcopy(getattr(metric, name)) for name in names}
