"""Keep what operators were given and returned, to look at it again when it is known which of them matters."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mp_plugin.numerics.finiteness import is_allocated
from mp_plugin.telemetry.operators import floating_tensors, tensors_in
from mp_plugin.telemetry.writers import storage_of

LARGEST_NUMBER = 64
"""Calls that are kept at most: the origin is among the first that made a non-finite number."""

SAME_KEY = 4
"""Calls with the same key that are kept at most: what is harmless in each layer must not take all places."""


LARGEST_COPIES = 2**30
"""Bytes of lent memory that are copied at most."""


@dataclass(slots=True)
class Call:
    """An operator with what it was given and what it returned."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    name: str | None = None
    """Of the lent tensor that was its first argument."""


class KeptCalls:
    """Hold on to calls, as they were: what somebody is about to write to is copied.

    Args:
        lent: tensors with their names whose memory is taken back without a word, as sharding does with the weights that
            it has gathered: they are copied at once.
    """

    def __init__(self, lent: Callable[[], Iterable[tuple[str, Tensor]]] = tuple) -> None:
        self._lent = lent
        self._copied_bytes = 0
        self._keys: Counter[Any] = Counter()
        self._by_memory: dict[int, list[Call]] = {}

    def keep(self, key: Any, operator: Any, args: Iterable[Any], kwargs: Mapping[str, Any], output: Any) -> Call | None:
        """Keep a call; None if enough of them are kept, or too much would have to be copied."""
        if self._keys[key] >= SAME_KEY or self._keys.total() >= LARGEST_NUMBER:
            return None
        given = (tuple(args), dict(kwargs), output)
        lent = {storage_of(tensor): name for name, tensor in self._lent()}
        copied = [tensor for tensor in tensors_in(given) if lent and storage_of(tensor) in lent]
        nbytes = sum(tensor.numel() * tensor.itemsize for tensor in copied)
        if copied and self._copied_bytes + nbytes > LARGEST_COPIES:
            return None
        self._copied_bytes += nbytes
        self._keys[key] += 1
        places = {id(tensor) for tensor in copied}
        call = Call(
            operator, *mapped(lambda each: each.detach().clone() if id(each) in places else each.detach(), given)
        )
        if copied and given[0] and given[0][0] is copied[0]:
            call.name = lent[storage_of(copied[0])]
        for tensor in floating_tensors((call.args, call.kwargs, call.output)):
            self._by_memory.setdefault(storage_of(tensor), []).append(call)
        return call

    def before_write(self, tensor: Tensor) -> None:
        """Call before a tensor is written to."""
        for call in self._by_memory.pop(storage_of(tensor), ()):
            call.args, call.kwargs, call.output = mapped(_copy, (call.args, call.kwargs, call.output))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone() if is_allocated(tensor) else tensor


def mapped(function: Any, value: Any) -> Any:
    """Apply a function to each tensor in tuples, lists and dicts.

    Example:
        >>> import torch
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
