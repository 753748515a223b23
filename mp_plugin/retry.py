"""Run a training step again on the same batch, as if it were the first time."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.call import _call_strategy_hook
from torch.optim import Optimizer

from mp_plugin.hooks import silent
from mp_plugin.instance import replace_attribute
from mp_plugin.module_state import counted_once
from mp_plugin.rehearsal import arguments_of
from mp_plugin.scaling.verdict import gather
from mp_plugin.step_start import MicroBatch, StepStart

log = logging.getLogger(__name__)


def may_run_again(start: StepStart | None, *, in_windows: bool = False) -> bool:
    """Whether the batches of this step may be run once more; puts them back if so.

    All ranks together: what one of them cannot run again, none does.

    Args:
        start: where the step began.
        in_windows: whether those of a window of accumulated batches may be too.
    """
    if start is None or not start.may_step_again or not (in_windows or start.is_single):
        return False
    if not all(gather(start.is_window_whole)):
        return False
    is_back = all(gather(start.restore_batches()))
    if not is_back:
        log.warning("training_step writes to its batch in place, so that an overflowed batch cannot be run again.")
    return is_back


@contextmanager
def run_again(start: StepStart | None, *, counts_anew: bool = False) -> Iterator[None]:
    """Go back to where a step began, and let the block run it again: what it logs and measures counts once.

    Mostly it is what the step did the first time, from which a lower loss scale makes no difference. Hooks have been
    called already. `on_after_backward` is called again if it writes to gradients: it has to write to those that the
    step will use.

    Args:
        start: where the step began.
        counts_anew: whether what it logs and measures this time counts: after a forward pass that was not finite.
    """
    assert start is not None, "a step is run again within a fit only"
    hooks = ["on_before_zero_grad", "on_before_backward"]
    if not start.edits_after_backward:
        hooks.append("on_after_backward")
    with ExitStack() as undo:
        if counts_anew:
            start.forget_counts()
        else:
            undo.enter_context(counted_once(start.module))
        undo.enter_context(silent(start.module, hooks))
        start.rewind()
        yield


def run_earlier_batches(start: StepStart | None, optimizer: Optimizer) -> None:
    """Run the batches of a window again that came before the last one, in `run_again`, to have their gradients back."""
    assert start is not None, "a step is run again within a fit only"
    if start.is_single:
        return
    module, trainer, strategy = start.module, start.module.trainer, start.module.trainer.strategy
    # What they gave was added up with gradients that are not finite.
    for parameter in module.parameters():
        parameter.grad = None
    *earlier, last = start.window
    for batch in earlier:
        unsynced = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
        _restore_random_state(batch)
        with unsynced, _logging_for(batch, trainer):
            # Which lets `self.log` know where it is called.
            output = _call_strategy_hook(trainer, "training_step", *arguments_of(module, batch))
            result = ClosureResult.from_training_step_output(output, trainer.accumulate_grad_batches)
            if result.closure_loss is not None:
                strategy.backward(result.closure_loss, optimizer)
    _restore_random_state(last)


@contextmanager
def _logging_for(batch: MicroBatch, trainer: "pl.Trainer") -> Iterator[None]:
    """Let what the block logs weigh as much as this batch is large."""
    results = trainer._results
    undo = _do_nothing if results is None else replace_attribute(results, "batch", batch.batch)
    try:
        yield
    finally:
        undo()


def _do_nothing() -> None:
    pass


def _restore_random_state(batch: MicroBatch) -> None:
    if batch.random_state is not None:
        batch.random_state.restore()


def known_at_first(result: Any, again: Callable[[], Any]) -> Callable[[], Any]:
    """Return a closure whose first call gives a result that is there already, and whose later calls run `again`."""
    results = iter([result])

    def closure() -> Any:
        for known in results:
            return known
        return again()

    return closure
