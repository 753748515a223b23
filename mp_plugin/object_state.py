"""What Python objects hold, to put it back: attributes, entries, arrays, the state of random generators."""

import random
import sys
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

MOST_OBJECTS = 200_000
"""Objects that are looked at; those nearest to where the search begins come first."""

LARGEST_ARRAYS = 2**26
"""Bytes of NumPy arrays that are copied at most: a count of something is far below, a data set is not."""

Undo = Callable[[], None]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, Tensor)
_OPEN = (SimpleNamespace, UserDict, UserList)
# Packages whose objects, but for modules, are none of the user's.
_CLOSED = {"torch", "lightning", "lightning_fabric", "pytorch_lightning", "numpy", "mp_plugin"}


class ObjectState:
    """Remember what objects hold, with all that is reached from them, and put it back.

    Looked into are lists, dicts, sets, deques and tuples, NumPy arrays, random generators, modules, and the attributes
    of objects whose class is neither Python's own nor of torch or Lightning. An object stays the same object. Tensors
    are not looked into; neither are `__slots__` and what a function encloses.

    Args:
        values: where the search begins.
        besides: attributes of modules to leave alone.

    Example:
        >>> history = {"loss": [1.0]}
        >>> state = ObjectState([history])
        >>> history["loss"].append(2.0)
        >>> state.restore(), history
        (None, {'loss': [1.0]})
    """

    def __init__(self, values: Iterable[Any], *, besides: frozenset[str] = frozenset()) -> None:
        self._besides = besides
        self._room = LARGEST_ARRAYS
        self._undo: list[Undo] = []
        # Their identities stay taken as long as they are held.
        self._seen: dict[int, Any] = {}
        waiting = deque(values)
        while waiting and len(self._seen) < MOST_OBJECTS:
            value = waiting.popleft()
            if not isinstance(value, _PLAIN) and id(value) not in self._seen:
                self._seen[id(value)] = value
                waiting.extend(self._look_into(value))

    def restore(self) -> None:
        """Put everything back."""
        with ExitStack() as undo:  # one that fails does not keep the others from being done
            for each in reversed(self._undo):
                undo.callback(each)

    def _look_into(self, value: Any) -> Iterable[Any]:
        """Remember what a value holds, and return it for a closer look."""
        if (undo := _remember_generator(value) or self._remember_array(value)) is not None:
            self._undo.append(undo)
            return ()
        if isinstance(value, list | dict | set | deque):
            self._undo.append(_remember_entries(value))
            return value.values() if isinstance(value, dict) else value
        if isinstance(value, tuple):
            return value
        if isinstance(value, Module) or _is_open(value):
            besides = self._besides if isinstance(value, Module) else frozenset()
            self._undo.append(_remember_attributes(value, besides))
            return [held for name, held in vars(value).items() if name not in besides]
        return ()

    def _remember_array(self, value: Any) -> Undo | None:
        numpy = sys.modules.get("numpy")
        if numpy is None or type(value) is not numpy.ndarray or not value.flags.writeable or value.nbytes > self._room:
            return None
        self._room -= value.nbytes
        copy = value.copy()
        return lambda: numpy.copyto(value, copy)


def _remember_attributes(value: Any, besides: frozenset[str]) -> Undo:
    before = {name: held for name, held in vars(value).items() if name not in besides}

    def restore() -> None:
        now = vars(value)
        for name in [name for name in now if name not in before and name not in besides]:
            del now[name]
        for name, held in before.items():
            if name not in now or now[name] is not held:
                now[name] = held

    return restore


def _remember_entries(container: Any) -> Undo:
    before = dict(container) if isinstance(container, dict) else list(container)

    def restore() -> None:
        now = dict(container) if isinstance(container, dict) else list(container)
        if _is_same(now, before):
            return
        container.clear()
        if isinstance(container, list | deque):
            container.extend(before)
        else:
            container.update(before)

    return restore


def _is_same(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        pairs: Iterator[tuple[Any, Any]] = zip(chain(now, now.values()), chain(before, before.values()), strict=True)
    else:
        pairs = zip(now, before, strict=True)
    return all(one is other for one, other in pairs)


def _remember_generator(value: Any) -> Undo | None:
    """Return what gives a random generator its state again; None for anything else."""
    if isinstance(value, torch.Generator):
        state = value.get_state()

        def restore() -> None:
            value.set_state(state)

        return restore
    if type(value) is random.Random:
        python_state = value.getstate()
        return lambda: value.setstate(python_state)
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.random.Generator):
        value = value.bit_generator
    if isinstance(value, numpy.random.BitGenerator):
        numpy_state = value.state
        return lambda: setattr(value, "state", numpy_state)
    if isinstance(value, numpy.random.RandomState):
        old_state = value.get_state()
        return lambda: value.set_state(old_state)
    return None


def _is_open(value: Any) -> bool:
    """Whether to look at an object's attributes."""
    package = type(value).__module__.partition(".")[0]
    if isinstance(value, _OPEN):
        return True
    if package in _CLOSED or package in sys.stdlib_module_names:
        return False
    return type(getattr(value, "__dict__", None)) is dict
