"""Cast the tensors within an argument or a result, whatever it is made of, in code that torch.compile can trace."""

import copy
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


class NestedCast:
    """Cast tensors of some formats to another one, in tuples, lists, dicts and dataclasses, however they are nested.

    Subclasses of these are understood too: named tuples, ordered dicts, frozen dataclasses, the outputs of model
    libraries. What holds nothing to cast is handed on as it is, the same object; what does is copied. Everything else
    is handed on: numbers, integer, bool and complex tensors, other formats, objects of other classes.

    Args:
        sources: number formats to cast.
        target: what they are cast to.

    Example:
        >>> cast = NestedCast((torch.float16,), torch.float32)
        >>> cast({"x": [torch.ones(2, dtype=torch.float16), torch.arange(2)]})
        {'x': [tensor([1., 1.]), tensor([0, 1])]}
    """

    def __init__(self, sources: tuple[torch.dtype, ...], target: torch.dtype) -> None:
        self._sources = sources
        self._target = target
        self._copies: list[tuple[Any, Any, Any]] = []

    def __call__(self, data: Any) -> Any:
        """Return the data with its tensors cast."""
        return self._cast(data, ())

    def write_back(self) -> None:
        """Put into lists, dicts and dataclasses what was put into their copies since.

        A layer may note down something in a container that it was given, such as an auxiliary loss.
        """
        for original, copied, cast in self._copies:
            if isinstance(original, list):
                if len(copied) != len(cast) or not _same(copied, cast):
                    original[:] = [_before(entry, original, cast) for entry in copied]
            elif isinstance(original, dict | UserDict):
                for key in list(original):
                    if key not in copied:
                        del original[key]
                for key in copied:
                    if key not in cast or not _is(copied[key], cast[key]):
                        original[key] = copied[key]
            else:
                for name, value in cast.items():
                    if not _is(getattr(copied, name), value):
                        object.__setattr__(original, name, getattr(copied, name))

    def _cast(self, data: Any, above: tuple[Any, ...]) -> Any:
        if isinstance(data, Tensor):
            return data.to(self._target) if data.dtype in self._sources else data
        if isinstance(data, tuple):
            parts = [self._cast(each, above) for each in data]
            return data if _same(data, parts) else _tuple_like(data, parts)
        is_list, is_dict = isinstance(data, list), isinstance(data, dict | UserDict)
        if not (is_list or is_dict or _is_plain_dataclass(data)):
            return data
        for each in above:
            if each is data:  # a container that holds itself
                return data
        above = (*above, data)
        if is_list:
            return self._cast_list(data, above)
        return self._cast_dict(data, above) if is_dict else self._cast_dataclass(data, above)

    # Some copies below are not made by `copy`, where torch.compile does not trace it.

    def _cast_list(self, data: list[Any], above: tuple[Any, ...]) -> list[Any]:
        cast = [self._cast(each, above) for each in data]
        if _same(data, cast):
            return data
        copied = list(data) if type(data) is list else copy.copy(data)
        copied[:] = cast
        self._copies.append((data, copied, cast))
        return copied

    def _cast_dict(self, data: Any, above: tuple[Any, ...]) -> Any:
        cast = {key: self._cast(data[key], above) for key in data}
        if _same([data[key] for key in data], [cast[key] for key in data]):
            return data
        copied = data.copy() if type(data) in (dict, OrderedDict, defaultdict) else copy.copy(data)
        for key in cast:
            copied[key] = cast[key]
        self._copies.append((data, copied, cast))
        return copied

    def _cast_dataclass(self, data: Any, above: tuple[Any, ...]) -> Any:
        names = [field.name for field in fields(data) if hasattr(data, field.name)]
        cast = {name: self._cast(getattr(data, name), above) for name in names}
        if _same([getattr(data, name) for name in names], [cast[name] for name in names]):
            return data
        copied = copy.copy(data) if hasattr(data, "__dict__") else object.__new__(type(data))
        for name in names:
            object.__setattr__(copied, name, cast[name])  # it may be frozen
        self._copies.append((data, copied, cast))
        return copied


def _is_plain_dataclass(data: Any) -> bool:
    return is_dataclass(data) and not isinstance(data, type | Module)


def _tuple_like(data: Any, parts: list[Any]) -> Any:
    if type(data) is tuple:
        return tuple(parts)
    if hasattr(data, "_make"):  # a named tuple, whose constructor may take its parts otherwise
        return data._make(parts)
    return type(data)(parts)


def _is(one: Any, other: Any) -> bool:
    """Whether two objects are the same one; tuples where their parts are, which torch.compile cannot tell."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and _same(one, other)
    return one is other


def _same(data: Iterable[Any], cast: Iterable[Any]) -> bool:
    for one, other in zip(data, cast, strict=True):  # noqa: SIM110  # torch.compile traces loops everywhere
        if not _is(one, other):
            return False
    return True


def _before(entry: Any, original: list[Any], cast: list[Any]) -> Any:
    """Return what an entry was before it was cast; an entry that was not is new."""
    for one, other in zip(original, cast, strict=True):
        if _is(other, entry):
            return one
    return entry
