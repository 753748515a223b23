"""Hooks that take the statistics of what layers put out, and of the gradients that come back to it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from mp_plugin.fallback.layers import bears_parameters, has_forward, layers_by_name
from mp_plugin.telemetry.layer_sample import TensorKind

Take = Callable[[str, TensorKind, Tensor], None]
"""Takes the statistics of a tensor of a layer; must not keep the tensor, whose memory somebody may write to."""


def sampled_layers(root: Module) -> dict[str, Module]:
    """Return the layers whose values are worth a look, by name: those that have parameters, and those that call none.

    Example:
        >>> from torch.nn import Linear, ReLU, Sequential
        >>> list(sampled_layers(Sequential(Sequential(Linear(2, 2), ReLU()))))
        ['0.0', '0.1']
    """
    return {
        name: module
        for name, module in layers_by_name(root).items()
        if has_forward(module)
        and not isinstance(module, torch.jit.ScriptModule)  # which runs without Python
        and (bears_parameters(module) or not any(has_forward(below) for below in _below(module)))
    }


def _below(module: Module) -> Iterator[Module]:
    return (each for each in module.modules() if each is not module)


class LayerProbes:
    """Hooks on layers, for the forward passes and backward passes that are watched; at all other times there are none.

    A forward pass that activation checkpointing runs again does not count again. What a hook returns is nothing, so
    that training is the same with it. Compiled code calls no hooks.

    Args:
        layers: by name.
        take: called for each floating-point tensor that a layer puts out.
        with_gradients: whether also for the gradients that come back to them.
    """

    def __init__(self, layers: Mapping[str, Module], take: Take, *, with_gradients: bool) -> None:
        self._layers = layers
        self._take = take
        self._with_gradients = with_gradients
        self._awaited: set[str] = set()
        """Layers whose gradients come back to what they put out when it was watched."""

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch a forward pass; gradients are seen whenever its backward pass runs."""
        self._awaited.clear()
        with self._hooks(self._see):
            yield

    def backward(self) -> AbstractContextManager[None]:
        """Watch a backward pass, for the layers that run only there with gradients: reentrant checkpoints."""
        return self._hooks(self._await_missed) if self._with_gradients else nullcontext()

    @contextmanager
    def _hooks(self, see: Callable[[str, Iterable[Tensor]], None]) -> Iterator[None]:
        handles = [module.register_forward_hook(_hook(name, see)) for name, module in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, name: str, outputs: Iterable[Tensor]) -> None:
        for output in outputs:
            self._take(name, TensorKind.activation, output.detach())
            self._await(name, output)

    def _await_missed(self, name: str, outputs: Iterable[Tensor]) -> None:
        if name not in self._awaited:
            for output in outputs:
                if output.requires_grad:
                    output.register_hook(self._gradient_hook(name))  # type: ignore[no-untyped-call]

    def _await(self, name: str, output: Tensor) -> None:
        if self._with_gradients and output.requires_grad:
            self._awaited.add(name)
            output.register_hook(self._gradient_hook(name))  # type: ignore[no-untyped-call]

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self._take(name, TensorKind.activation_gradient, gradient.detach())

        return hook


def _hook(name: str, see: Callable[[str, Iterable[Tensor]], None]) -> Callable[[Module, Any, Any], None]:
    def hook(module: Module, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            see(name, [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.is_floating_point()])

    return hook
