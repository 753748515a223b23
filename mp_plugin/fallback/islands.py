"""Run modules in FP32 inside an autocast region, and undo it."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule
from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.modules.lazy import LazyModuleMixin

from mp_plugin.errors import UnsupportedError
from mp_plugin.fallback.island_class import HALF, Island, class_before, island_class
from mp_plugin.fallback.layers import has_forward, layers_by_name

log = logging.getLogger(__name__)


def is_island(module: Module) -> bool:
    """Whether a module runs in FP32 as an island of its own."""
    return isinstance(module, Island)


class Islands:
    """The islands of one model, as a set of layer names that can be exchanged.

    An island, with all modules below it, computes in FP32: fp16 and bf16 tensors in its arguments are cast up,
    however they are nested, autocast is off, and tensors are created in FP32. Integers, bools, complex and fp64
    tensors stay. The module stays the same object, with the same parameters, hooks and state; only its class is
    exchanged for a subclass of the same name, and undone the module is exactly as it was. A copy of an island, or one
    that was saved whole, is an island too, and may be taken over. In a compiled model each new set costs one
    compilation.

    What the module casts to half by itself, or in an autocast region of its own, stays so; its hooks run outside. What
    it writes into a half tensor that it was given stays within it.

    Args:
        root: the model.
        device_type: of the autocast region around it.
        output_dtype: what FP32 tensors in the output of an island are cast to. None leaves them in FP32, for autocast
            to cast: for models with FP32 weights. A half format: for models with half weights, where the weights of an
            island are FP32 (`to_fp32_`). An island within another one leaves its output as it is.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> islands = Islands(net, device_type="cpu")
        >>> islands.set(["0"])
        >>> net[0]
        Linear(in_features=2, out_features=2, bias=True, fp32 island)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     net[0](torch.ones(1, 2)).dtype, net(torch.ones(1, 2)).dtype
        (torch.float32, torch.bfloat16)
        >>> islands.set([])
        >>> net[0]
        Linear(in_features=2, out_features=2, bias=True)
    """

    def __init__(self, root: Module, *, device_type: str, output_dtype: torch.dtype | None = None) -> None:
        self.root = root
        self._device_type = device_type
        self._output_dtype = output_dtype
        self._held: dict[str, _Held] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers that are islands now, in the order of the model."""
        return tuple(self._held)

    def set(self, names: Iterable[str]) -> None:
        """Make exactly these layers islands, or change nothing.

        Args:
            names: as in `layers_by_name`.

        Raises:
            UnsupportedError: for a layer that is not there or cannot be an island; it is named, with the reason.
        """
        wanted = frozenset(names)
        if not wanted and not self._held:
            return
        layers = {name: layer for name, layer in layers_by_name(self.root).items() if name in wanted}
        for name in sorted(wanted):
            if name not in layers:
                raise UnsupportedError(f"Layer {name!r} cannot run in FP32: the model has no such layer.")
            self._check(name, layers[name])
        self._exchange(layers)

    def accepts(self, name: str, layer: Module) -> bool:
        """Whether a layer can be an island. Tries it: not every class says beforehand that it cannot be exchanged."""
        if name in self._held:
            return True
        try:
            self._check(name, layer)
            self._begin(name, layer).end(name)
        except UnsupportedError:
            return False
        return True

    @contextmanager
    def tried(self, names: Iterable[str]) -> Iterator[None]:
        """Make exactly these layers islands while the block runs."""
        before = {name: held.module for name, held in self._held.items()}
        self.set(names)
        try:
            yield
        finally:
            self._exchange(before)

    def _check(self, name: str, layer: Module) -> None:
        held = self._held.get(name)
        if held is None or held.module is not layer:
            reason = why_no_island(layer, output_dtype=self._output_dtype)
            if reason:
                raise UnsupportedError(f"Layer {name!r} ({type(layer).__name__}) cannot run in FP32: {reason}.")

    def _exchange(self, layers: Mapping[str, Module]) -> None:
        kept = {
            name: held for name, held in self._held.items() if layers.get(name) is held.module and held.is_as_we_left_it
        }
        begun: dict[str, _Held] = {}
        try:
            for name in layers:
                begun[name] = kept.get(name) or self._begin(name, layers[name])
        except UnsupportedError:
            for name in begun.keys() - kept.keys():
                begun[name].end(name)
            raise
        for name in self._held.keys() - kept.keys():
            self._held[name].end(name)
        self._held = begun

    def _begin(self, name: str, layer: Module) -> "_Held":
        before: Any = class_before(layer)
        try:
            island = island_class(before, self._device_type, self._output_dtype)
            object.__setattr__(layer, "__class__", island)
        except Exception as error:
            # Whatever the metaclass of somebody else's class may raise.
            raise UnsupportedError(
                f"Layer {name!r} ({before.__name__}) cannot run in FP32: its class cannot be exchanged ({error})."
            ) from error
        return _Held(layer, before, island)


class _Held(NamedTuple):
    """A module that is an island."""

    module: Module
    before: Any
    island: type[Module]

    @property
    def is_as_we_left_it(self) -> bool:
        return type(self.module) is self.island

    def end(self, name: str) -> None:
        if self.is_as_we_left_it:
            object.__setattr__(self.module, "__class__", self.before)
        elif is_island(self.module):
            log.warning("Layer %r stays in FP32: its class was exchanged while it was an island.", name)


def why_no_island(module: Module, *, output_dtype: torch.dtype | None = None) -> str | None:
    """Return why a module cannot run in FP32 as an island of its own; None if it can.

    Args:
        module: that may become one.
        output_dtype: of the islands; None where weights are FP32.
    """
    if issubclass(class_before(module), Island):
        return "its class was exchanged while it was an island"
    if isinstance(module, ScriptModule):
        return "TorchScript has compiled it"
    if isinstance(module, GraphModule):
        return "torch.fx has written its class for this object alone"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "it has no weights before its first batch"
    if not has_forward(module):
        return "it is never called itself, only what is below or above it"
    if "forward" in vars(module):
        return "this object was given a forward of its own"
    if output_dtype is None:
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if tensor.dtype in HALF:
                return f"its {name!r} is {tensor.dtype}, which FP32 inputs do not go with"
    return None
