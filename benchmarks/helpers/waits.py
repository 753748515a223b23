"""How often a training makes the host wait for the device.

On CUDA torch tells: `torch.cuda.set_sync_debug_mode("warn")` warns of each operator that waits, and explicit waits for
events and streams, which it does not tell of, are counted where they are called. On the CPU nobody waits: what is
counted there are the reads that would wait on another device: not those of the optimizer's own step counts, which lie
on the host on every device, and not `numpy()`, which reads the memory of the host and fails for any other.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
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
        for owner in (torch.cuda.Event, torch.cuda.Stream):
            stack.enter_context(patch.object(owner, "synchronize", _counted(owner, found)))
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode("warn")
        yield
    told = sum(TOLD in str(each.message) for each in caught)
    if told:
        found["operator"] += told


def _counted(owner: Any, found: Counter[str]) -> Any:
    original = owner.synchronize

    def synchronize(self: Any) -> None:
        found[owner.__name__] += 1
        original(self)

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
