"""What layers in FP32 cost a step, and what it costs to have them found on the way: timed and counted.

The model is a character model of one transformer block (helpers/trainings.py); the island is the last linear layer of
its perceptron. By hand, the same layer runs in FP32 as users write it themselves: autocast off, inputs cast up.
"""

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.clock import Clock
from helpers.trainings import Training, fit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin import AdaptivePrecision, Fallback

PRECISIONS = ("bf16", "fp16")
ISLAND = "net.mlp.2"
FALLBACKS: dict[str, Callable[[], Fallback | None]] = {
    "none": lambda: None,
    "empty": Fallback,
    "auto": lambda: Fallback(auto=True),
    "island": lambda: Fallback(layers=[ISLAND]),
    "by hand": lambda: None,
}
"""None, one that names nothing, one that may find layers in a healthy model, one island, and its layer by hand."""
WARM_UP = 10
COUNTED = 5
"""A step without a sample."""


class ByHand(nn.Linear):
    """Runs in FP32, whatever is around it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class Healthy(Training):
    """The character model, without a look at its own loss."""

    def __init__(self, steps: int) -> None:
        super().__init__("text", steps)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)


def train(kind: str, precision: str, callback: pl.Callback, steps: int) -> None:
    """Train with a kind of fallback; the precision map that it leaves goes away."""
    training = Healthy(steps)
    if kind == "by hand":
        training.get_submodule(ISLAND).__class__ = ByHand
    with tempfile.TemporaryDirectory() as folder:
        fit(training, AdaptivePrecision(precision, fallback=FALLBACKS[kind]()), callback, default_root_dir=folder)


def step_seconds(precision: str, kind: str, steps: int) -> float:
    """Train for a block of steps and return the median seconds of one; gradients are sampled in every 100th."""
    clock = Clock(WARM_UP)
    train(kind, precision, clock, steps)
    return statistics.median(clock.seconds)


def count_operators(precision: str, kind: str, step: int = COUNTED) -> int:
    """Train for a few steps and return how many operators ran in one of them, all that surrounds it included."""
    counter = _CountOneStep(step)
    train(kind, precision, counter, step + 2)
    return counter.operators.count


class _Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


class _CountOneStep(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step, self.operators = step, _Operators()

    def on_train_batch_start(self, trainer: Any, training: Any, batch: Any, step: int) -> None:
        if step == self.step:
            self.operators.__enter__()
        elif step == self.step + 1:
            self.operators.__exit__(None, None, None)
