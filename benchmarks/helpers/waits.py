"""How often a training makes the host wait for the device.

On CUDA torch tells: `torch.cuda.set_sync_debug_mode("warn")` warns of each operator, and of each call for a stream,
that waits. It does not tell of waits for an event, which are counted where they are called: those for an event that is
not there yet. If the device still has work that was queued behind it, it was never idle, and the wait is `EARLIER`: the
host is ahead by more than a step, and lets the device catch up. On the CPU nobody waits: what is counted there are the
reads that would wait on another device: not those of the optimizer's own step counts, which lie on the host on every
device, and not `numpy()`, which reads the memory of the host and fails for any other.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from helpers.goals import EARLIER
from torch import Tensor
from torch.overrides import TorchFunctionMode

READS = (
    *("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__"),
    *("equal", "nonzero", "is_nonzero", "masked_select", "unique", "allclose"),
)
TOLD = "called a synchronizing CUDA operation"


@contextmanager
def counted_waits(found: Counter[str], device: str, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Count the waits of a block.

    Args:
        found: counts by what waited.
        device: `cpu` or `cuda`.
        optimizer: whose step counts do not count.
    """
    with _told_by_torch(found) if device == "cuda" else _Reads(found, optimizer):
        yield


@contextmanager
def _told_by_torch(found: Counter[str]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.cuda.Event, "synchronize", _counted(found)))
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode("warn")
        yield
    told = sum(TOLD in str(each.message) for each in caught)
    if told:
        found["operator"] += told


def _counted(found: Counter[str]) -> Any:
    original = torch.cuda.Event.synchronize

    def synchronize(self: Any) -> None:
        if self.query():
            return
        original(self)
        found["event" if torch.cuda.current_stream().query() else EARLIER] += 1

    return synchronize


class _Reads(TorchFunctionMode):
    def __init__(self, found: Counter[str], optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.found, self.optimizer = found, optimizer

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in READS and not self._is_step_count(args[0]):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))

    def _is_step_count(self, tensor: Any) -> bool:
        states = self.optimizer.state.values()
        return isinstance(tensor, Tensor) and any(state.get("step") is tensor for state in states)
