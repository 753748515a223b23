"""Watch the training itself for a while, where a step cannot be run again."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch

from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.trace import Trace

ARMED_STEPS = 200
"""Training steps that are watched at most: each takes many times as long as a plain one."""


class LiveTrace:
    """A trace of the training steps as they happen, until somebody has seen enough or `ARMED_STEPS` are over.

    A new trace begins with the first training step after an optimizer has stepped, so that gradients which are
    collected over several training steps are traced from where they came.
    """

    def __init__(self, module: "pl.LightningModule") -> None:
        self._module = module
        self._steps_left = ARMED_STEPS
        self._is_watching = False
        self._begin()

    def _begin(self) -> None:
        self.layers = LayerStack(self._module)
        self.trace = Trace(self.layers)
        self.is_empty = True
        self._is_used = False

    @property
    def is_over(self) -> bool:
        """Whether it has watched long enough in vain."""
        return self._steps_left < 0

    def used(self) -> None:
        """Note that an optimizer stepped with what was traced so far."""
        self._is_used = True

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch a training step, which runs eagerly meanwhile."""
        self._steps_left -= 1
        if self.is_over:
            yield
            return
        if self._is_used:
            self._begin()
        self.is_empty = False
        with self._watching():
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Watch a backward pass, inside a training step or after it."""
        with self._watching(), self.trace.backward():
            yield

    @contextmanager
    def _watching(self) -> Iterator[None]:
        if self._is_watching:
            yield
            return
        self._is_watching = True
        try:
            with torch.compiler.set_stance("force_eager"), self.layers, self.trace:
                yield
        finally:
            self._is_watching = False
