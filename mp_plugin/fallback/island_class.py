"""The class of a module that runs in FP32: that of the module itself, with a forward of its own around it."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, wraps
from typing import Any

import torch
from torch.nn import Module

from mp_plugin.casting import default_dtype
from mp_plugin.fallback.nested_cast import NestedCast

HALF = (torch.float16, torch.bfloat16)

NOTE = "fp32 island"
"""What `print(model)` shows of an island."""


class Island:
    """Marks the class of a module that runs in FP32."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Ends the chain here: a class that lists its subclasses, by name for one, is not to know of an island.
        pass


def class_before(module: Module) -> type[Module]:
    """Return the class that a module has, or had before it became an island."""
    cls = type(module)
    return cls.__bases__[1] if cls.__bases__[0] is Island else cls


@cache
def island_class(cls: Any, device_type: str, output_dtype: torch.dtype | None) -> type[Module]:
    """Return a subclass that runs in FP32; it bears the name of its base.

    The same class each time, so that code that was compiled for it is used again. Its `forward` is one `with` block:
    nothing is left behind by an exception, nor by activation checkpointing, which ends a recomputation with one.

    Args:
        cls: of the module as it was.
        device_type: of the autocast region around it.
        output_dtype: what FP32 tensors in its output are cast to; None leaves them.

    Raises:
        TypeError: when the class refuses to have subclasses.
    """

    @wraps(cls.forward, updated=())
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # An island says so by autocast's own dtype, which is the thread's, and which checkpointing and torch.compile
        # know of: an island inside another one leaves its output in FP32.
        is_inside = torch.get_autocast_dtype(device_type) == torch.float32
        up = NestedCast(HALF, torch.float32)
        args, kwargs = up(args), up(kwargs)
        # Where the weights are half, tensors are made in half too unless they are asked for otherwise.
        made_in_fp32 = nullcontext() if output_dtype is None else default_dtype(torch.float32)
        with torch.autocast(device_type, dtype=torch.float32, enabled=False), made_in_fp32:
            output = super(Island, self).forward(*args, **kwargs)
        up.write_back()
        if output_dtype is None or is_inside:
            return output
        return NestedCast((torch.float32,), output_dtype)(output)

    def reduce_ex(self: Any, protocol: Any) -> Any:
        reduced = super(Island, self).__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        function, arguments, *state = reduced
        # By the name of an island, a copy or a file would find the class that it bears the name of.
        arguments = tuple(cls if each is island else each for each in arguments)
        return build_island, (device_type, output_dtype, function, arguments), *state

    members = {"forward": forward, "__reduce_ex__": reduce_ex, **_shown(cls)}
    members |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Any = type(cls)
    island: type[Module] = metaclass(cls.__name__, (Island, cls), members)
    return island


def build_island(
    device_type: str, output_dtype: torch.dtype | None, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Make an island that was copied or saved, without its state."""
    module = function(*arguments)
    cls: Any = type(module)
    object.__setattr__(module, "__class__", island_class(cls, device_type, output_dtype))
    return module


def _shown(cls: Any) -> dict[str, Any]:
    """Return what a class needs to show that it is an island."""
    if cls.__repr__ is not Module.__repr__:
        return {"__repr__": lambda self: f"{super(Island, self).__repr__()} ({NOTE})"}

    def extra_repr(self: Any) -> str:
        return ", ".join(filter(None, (super(Island, self).extra_repr(), NOTE)))

    return {"extra_repr": extra_repr}
