"""Which layer is running: the names of the modules whose forward pass has begun and not ended."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from mp_plugin.fully_sharded import lent_parameters
from mp_plugin.parameter_names import plain_name


@dataclass(slots=True)
class _Running:
    """A forward pass that has begun."""

    module: int
    name: str
    calls: Counter[int] = field(default_factory=Counter)
    """How often it has called which module."""


class LayerStack:
    """While entered, know the qualified name of the innermost module that runs; for incidents only.

    Two hooks on every module that is there when it is entered, gone when it is left; who calls `forward` by itself
    calls no hook. A module that was registered under several names goes by the one below the module that calls it.

    Args:
        root: the model, whose own name is empty.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> stack, seen = LayerStack(net), []
        >>> hook = net[1].register_forward_hook(lambda *_: seen.append(stack.current))
        >>> with stack:
        ...     _ = net(torch.zeros(1, 2))
        >>> seen
        ['1']
    """

    def __init__(self, root: Module) -> None:
        self._names: dict[int, list[str]] = defaultdict(list)
        self._modules: dict[int, Module] = {}
        for name, module in root.named_modules(remove_duplicate=False):
            # A scripted module runs without Python, and takes no hooks of ours.
            if not isinstance(module, torch.jit.ScriptModule):
                self._names[id(module)].append(plain_name(name))
                self._modules[id(module)] = module
        self._root = root
        self._running = [_Running(0, "")]
        self._undo: list[Callable[[], None]] = []

    @property
    def current(self) -> str:
        """Qualified name of the innermost module that runs; empty outside of all."""
        return self._running[-1].name

    def owner(self, tensor: Tensor) -> str:
        """Return the qualified name of the module that a parameter belongs to; empty if it is nobody's."""
        names = (name for name, parameter in self._root.named_parameters() if parameter is tensor)
        return plain_name(next(names, "").rpartition(".")[0])

    def lent_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters whose memory is given back before the step is over, with their names."""
        return lent_parameters(self._root)

    def __enter__(self) -> "LayerStack":
        self._running = [_Running(0, "")]
        for module in self._modules.values():
            self._undo.append(module.register_forward_pre_hook(self._begin, prepend=True).remove)
            self._undo.append(module.register_forward_hook(self._end, always_call=True).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()
        self._running = [_Running(0, "")]

    def _begin(self, module: Module, _: Any) -> None:
        parent = self._running[-1]
        names = self._names[id(module)]
        below = [name for name in names if not parent.name or name.startswith(f"{parent.name}.")] or names
        depth = min(name.count(".") for name in below)
        below = [name for name in below if name.count(".") == depth]
        # One module twice in one container: its second call is the second name's.
        turn = parent.calls[id(module)] % len(below)
        parent.calls[id(module)] += 1
        self._running.append(_Running(id(module), below[turn]))

    def _end(self, module: Module, *_: Any) -> None:
        # A forward pass that an exception ended, as activation checkpointing does, may have left others behind.
        if not any(each.module == id(module) for each in self._running):
            return
        while self._running.pop().module != id(module):
            pass
