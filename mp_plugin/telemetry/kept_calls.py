"""Keep what operators were given and returned, to look at it again when it is known which of them matters."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mp_plugin.telemetry.operators import floating_tensors
from mp_plugin.telemetry.writers import storage_of

LARGEST_NUMBER = 64
"""Calls that are kept at most: the origin is among the first that made a non-finite number."""

SAME_KEY = 4
"""Calls with the same key that are kept at most: what is harmless in each layer must not take all places."""


@dataclass(slots=True)
class Call:
    """An operator with what it was given and what it returned."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class KeptCalls:
    """Hold on to calls, as they were: what somebody is about to write to is copied."""

    def __init__(self) -> None:
        self._keys: Counter[Any] = Counter()
        self._by_memory: dict[int, list[Call]] = {}

    def keep(self, key: Any, operator: Any, args: Iterable[Any], kwargs: Mapping[str, Any], output: Any) -> Call | None:
        """Keep a call; None if enough of them are kept."""
        if self._keys[key] >= SAME_KEY or self._keys.total() >= LARGEST_NUMBER:
            return None
        self._keys[key] += 1
        call = Call(operator, *mapped(Tensor.detach, (tuple(args), dict(kwargs), output)))
        for tensor in floating_tensors((call.args, call.kwargs, call.output)):
            self._by_memory.setdefault(storage_of(tensor), []).append(call)
        return call

    def before_write(self, tensor: Tensor) -> None:
        """Call before a tensor is written to."""
        for call in self._by_memory.pop(storage_of(tensor), ()):
            call.args, call.kwargs, call.output = mapped(torch.clone, (call.args, call.kwargs, call.output))


def mapped(function: Any, value: Any) -> Any:
    """Apply a function to each tensor in tuples, lists and dicts.

    Example:
        >>> mapped(torch.neg, [torch.ones(1), (2, {"x": torch.zeros(1)})])
        [tensor([-1.]), (2, {'x': tensor([-0.])})]
    """
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)([mapped(function, each) for each in value])
    if type(value) is dict:
        return {name: mapped(function, each) for name, each in value.items()}
    return value
