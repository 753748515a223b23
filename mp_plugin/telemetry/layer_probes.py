"""Hooks that take the statistics of what layers put out, and of the gradients that come back to it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, TransformerEncoderLayer
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from mp_plugin.fallback.layers import bears_parameters, has_forward, layers_by_name
from mp_plugin.telemetry.compiled_code import is_compiled
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.stopwatch import Stopwatch

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

    What a hook returns is nothing, so that training is the same with it. A forward pass that activation checkpointing
    runs again does not count again. Gradients count that a watched backward pass brings, not those that a training step
    asks for on the way, as for a gradient penalty. Compiled code calls no hooks; what `torch.func` transforms is not
    looked at.

    Args:
        root: the model of the layers.
        layers: by name.
        take: called for each floating-point tensor that a layer puts out.
        with_gradients: whether also for the gradients that come back to them.
        stopwatch: takes the time of all that, hooks included.
    """

    def __init__(
        self, root: Module, layers: Mapping[str, Module], take: Take, *, with_gradients: bool, stopwatch: Stopwatch
    ) -> None:
        self._root = root
        self._layers = layers
        self._stopwatch = stopwatch
        self._take = take
        self._with_gradients = with_gradients
        self._is_backward = False
        self._on_outputs: list[RemovableHandle] = []

    @contextmanager
    def forward(self, *, is_eager: bool = False) -> Iterator[None]:
        """Watch a forward pass; its gradients are seen in backward passes that are watched until `forget`.

        Args:
            is_eager: whether even what is compiled runs eagerly.
        """
        with self._hooks(self._see, is_eager=is_eager):
            yield

    @contextmanager
    def backward(self, *, is_eager: bool = False) -> Iterator[None]:
        """Watch a backward pass, with the layers that run only there with gradients: reentrant checkpoints.

        Args:
            is_eager: whether even what is compiled runs eagerly.
        """
        if not self._with_gradients:
            yield
            return
        self._is_backward = True
        try:
            with self._hooks(self._await, is_eager=is_eager):
                yield
        finally:
            self._is_backward = False

    def forget(self) -> None:
        """Wait for no more gradients. What a layer puts out may stay, as a parameter does that it returns as it is."""
        for handle in self._on_outputs:
            handle.remove()
        self._on_outputs.clear()

    @contextmanager
    def _hooks(self, see: Callable[[str, Tensor], None], *, is_eager: bool) -> Iterator[None]:
        with ExitStack() as undo:
            with self._stopwatch:
                shut = {
                    part
                    for each in self._root.modules()
                    if _is_fused(each) or (not is_eager and is_compiled(each))
                    for part in each.modules()
                }
                for name, module in self._layers.items():
                    if module not in shut:
                        undo.callback(module.register_forward_hook(self._hook(name, see)).remove)
            try:
                yield
            finally:
                with self._stopwatch:
                    undo.close()

    def _hook(self, name: str, see: Callable[[str, Tensor], None]) -> Callable[[Module, Any, Any], None]:
        def hook(module: Module, inputs: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            with self._stopwatch:
                for each in tree_leaves(output):
                    if isinstance(each, Tensor) and each.is_floating_point() and not _is_transformed(each):
                        see(name, each)

        return hook

    def _see(self, name: str, output: Tensor) -> None:
        self._take(name, TensorKind.activation, output)
        self._await(name, output)

    def _await(self, name: str, output: Tensor) -> None:
        if self._with_gradients and output.requires_grad:
            self._on_outputs.append(output.register_hook(self._gradient_hook(name)))  # type: ignore[no-untyped-call]

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if self._is_backward:
                self._take(name, TensorKind.activation_gradient, gradient)

        return hook


def _is_fused(module: Module) -> bool:
    """Whether torch may fuse the parts of a module into one operator, which it does not if one of them has a hook."""
    return isinstance(module, TransformerEncoderLayer) and not module.training


def _is_transformed(output: Tensor) -> bool:
    """Whether `torch.func` stands between a tensor and its values: they are one of many, or of a gradient's own run."""
    return torch._C._functorch.is_functorch_wrapped_tensor(output)
