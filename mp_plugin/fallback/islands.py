"""Run a module in FP32 inside an autocast region, and undo it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from mp_plugin.fallback.layers import layers_by_name

HALF = (torch.float16, torch.bfloat16)


class Island:
    """Marks the class of a module that runs in FP32."""


def make_island_(module: Module, *, device_type: str, output_dtype: torch.dtype | None = None) -> None:
    """Let a module, and all below it, run in FP32 from its next call on."""
    if not isinstance(module, Island):
        module.__class__ = _island_class(type(module), device_type, output_dtype)


def undo_island_(module: Module) -> None:
    """Let a module run as it did before it became an island."""
    if isinstance(module, Island):
        module.__class__ = type(module).__mro__[2]


def is_island(module: Module) -> bool:
    """Whether a module runs in FP32 as an island of its own."""
    return isinstance(module, Island)


class Islands:
    """The islands of one model, as a set of layer names that can be exchanged.

    Args:
        root: the model.
        device_type: of the autocast region around it.
        output_dtype: what outputs of an island are cast to; None leaves them in FP32.
    """

    def __init__(self, root: Module, *, device_type: str, output_dtype: torch.dtype | None = None) -> None:
        self._root = root
        self._device_type = device_type
        self._output_dtype = output_dtype
        self.names: tuple[str, ...] = ()
        """Of the layers that are islands now, in the order of the model."""

    def set(self, names: Iterable[str]) -> None:
        """Make exactly these layers islands."""
        wanted = frozenset(names)
        layers = layers_by_name(self._root)
        for name in self.names:
            if name not in wanted:
                undo_island_(layers[name])
        for name in wanted:
            make_island_(layers[name], device_type=self._device_type, output_dtype=self._output_dtype)
        self.names = tuple(name for name in layers if name in wanted)

    @contextmanager
    def tried(self, names: Iterable[str]) -> Iterator[None]:
        """Make exactly these layers islands while the block runs."""
        before = self.names
        self.set(names)
        try:
            yield
        finally:
            self.set(before)


@cache
def _island_class(cls: type[Module], device_type: str, output_dtype: torch.dtype | None) -> type[Module]:
    original = cls.forward

    @wraps(original)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            output = original(self, *_in_fp32(args), **_in_fp32(kwargs))
        return output

    return type(cls)(cls.__name__, (Island, cls), {"forward": forward, "__module__": cls.__module__})


def _in_fp32(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.float() if data.dtype in HALF else data
    if isinstance(data, tuple | list):
        return type(data)(_in_fp32(each) for each in data)
    if isinstance(data, dict):
        return {key: _in_fp32(each) for key, each in data.items()}
    return data
