"""Run a training step again on the same batch, as if it were the first time."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import lightning.pytorch as pl
from torch.nn import Module
from torchmetrics import Metric

from mp_plugin.buffers import LastGoodBuffers
from mp_plugin.instance import replace_attribute
from mp_plugin.random_state import capture_random_state


class StepStart:
    """Where a training step, or a window of accumulated ones, began: buffers and random streams, to go back to.

    Args:
        module: what trains.
        retries: times a batch may be run again; 0 saves the cost of remembering the random streams.
    """

    def __init__(self, module: "pl.LightningModule", *, retries: int) -> None:
        self.module = module
        self.buffers = LastGoodBuffers(module)
        self._may_rewind = retries > 0
        self._is_marked = False
        self._restore_random_state: Callable[[], None] | None = None

    def mark(self) -> None:
        """Call before the forward pass of the first batch of a window; later calls, until `done`, change nothing."""
        if self._is_marked:
            return
        self._is_marked = True
        self.buffers.save()
        if self._may_rewind:
            self._restore_random_state = capture_random_state(self.module.device)

    def done(self) -> None:
        """The step was taken or skipped: the next forward pass begins a new one."""
        self._is_marked = False

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


def can_run_again(module: "pl.LightningModule") -> bool:
    """Whether the closure of this step holds all of it.

    In a window of accumulated batches the closure holds the last batch only, and a `training_step` that takes the
    iterator would take the next batch.
    """
    is_iterator = "dataloader_iter" in signature(module.training_step).parameters
    return module.automatic_optimization and module.trainer.accumulate_grad_batches == 1 and not is_iterator


@contextmanager
def run_again(start: StepStart | None) -> Iterator[None]:
    """Go back to where a step began, and let the block run it again without a trace in logs and metrics.

    The first run has logged and measured already; a step counts once.
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
