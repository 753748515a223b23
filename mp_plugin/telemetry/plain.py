"""Whatever a batch is made of, as types that any torch can load without trusting the file."""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

LONGEST_TEXT = 1000
"""Characters kept of what can only be described."""


def to_plain(value: Any, path: str) -> tuple[Any, list[str]]:
    """Copy a nested value as what `torch.load(weights_only=True)` reads, and tell what of it is only described.

    Tensors and NumPy's arrays become CPU tensors of their own; mappings, dataclasses and named tuples dicts; numbers,
    strings, bytes, None, lists and tuples stay. Anything else becomes its `repr`. One sync for each tensor on a device.

    Args:
        value: what to copy.
        path: what the value is called.

    Returns:
        The copy, and the paths of everything that is only described.

    Example:
        >>> to_plain({"id": 7, "made by": object}, "batch")
        ({'id': 7, 'made by': "<class 'object'>"}, ["batch['made by'] (type)"])
    """
    described: list[str] = []
    return _plain(value, path, described), described


def _plain(value: Any, path: str, described: list[str]) -> Any:
    # What is derived from a number or a string, an enum or a scalar of NumPy, would be saved by the name of its class.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    kind: Any
    for kind in (int, float, complex, bytes):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Tensor) or _is_of_numpy(value, "ndarray"):
        tensor = _tensor(value)
        return _describe(value, path, described) if tensor is None else tensor
    if _is_of_numpy(value, "generic"):
        return _plain(value.item(), path, described)
    if isinstance(value, Mapping):
        return {
            _plain(key, f"the key {key!r} of {path}", described): _plain(part, f"{path}[{key!r}]", described)
            for key, part in value.items()
        }
    named = _named_parts(value)
    if named is not None:
        return {name: _plain(part, f"{path}.{name}", described) for name, part in named.items()}
    if isinstance(value, list | tuple):
        parts = [_plain(part, f"{path}[{index}]", described) for index, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    return _describe(value, path, described)


def _named_parts(value: Any) -> dict[str, Any] | None:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return None


def _tensor(value: Any) -> Tensor | None:
    """Return a copy without history, subclass or a larger storage behind it; None where there can be none."""
    try:
        if isinstance(value, Tensor):
            return value.detach().as_subclass(Tensor).to("cpu", copy=True)
        return torch.from_numpy(value.copy())
    except (RuntimeError, TypeError, ValueError):  # a tensor without data, or an array of something else than numbers
        return None


def _describe(value: Any, path: str, described: list[str]) -> str:
    described.append(f"{path} ({type(value).__qualname__})")
    return repr(value)[:LONGEST_TEXT]


def _is_of_numpy(value: Any, kind: str) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, kind))
