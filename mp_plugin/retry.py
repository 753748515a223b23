"""Run a training step again on the same batch, as if it were the first time."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mp_plugin.hooks import silent
from mp_plugin.module_state import counted_once
from mp_plugin.scaling.verdict import gather
from mp_plugin.step_start import StepStart

log = logging.getLogger(__name__)


def may_run_again(start: StepStart | None, retries: int) -> bool:
    """Whether the batch of this step may be run once more, after so many times; puts the batch back if so.

    All ranks together: what one of them cannot run again, none does.
    """
    if start is None or retries >= start.retries:
        return False
    is_back = all(gather(start.restore_batches()))
    if not is_back:
        log.warning("training_step writes to its batch in place, so that an overflowed batch cannot be run again.")
    return is_back


@contextmanager
def run_again(start: StepStart | None) -> Iterator[None]:
    """Go back to where a step began, and let the block run it again: what it logs and measures counts once.

    Hooks have been called already. `on_after_backward` is called again if it writes to gradients: it has to write to
    those that the step will use.
    """
    assert start is not None, "a step is run again within a fit only"
    hooks = ["on_before_zero_grad", "on_before_backward"]
    if not start.edits_after_backward:
        hooks.append("on_after_backward")
    with counted_once(start.module), silent(start.module, hooks):
        start.rewind()
        yield


def known_at_first(result: Any, again: Callable[[], Any]) -> Callable[[], Any]:
    """Return a closure whose first call gives a result that is there already, and whose later calls run `again`."""
    results = iter([result])

    def closure() -> Any:
        for known in results:
            return known
        return again()

    return closure
