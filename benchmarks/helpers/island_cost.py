"""What layers in FP32 cost a step, and what it costs to have them found on the way: timed and counted.

The model is a character model of one transformer block (helpers/trainings.py); the island is the last linear layer of
its perceptron.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.clock import Clock
from helpers.trainings import Training, fit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin import AdaptivePrecision, Fallback
from mp_plugin.fallback.islands import Islands

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
ISLAND = "net.mlp.2"
FALLBACKS: dict[str, Callable[[], Fallback | None]] = {
    "none": lambda: None,
    "empty": Fallback,
    "auto": lambda: Fallback(auto=True),
    "island": lambda: Fallback(layers=[ISLAND]),
}
"""No fallback, one that names nothing, one that may find layers in a healthy model, and one island."""
STEPS, WARM_UP = 90, 10
"""Of one block; the gradients are sampled in the first step only, by default every 100th."""
COUNTED = 5
"""A step without a sample."""


class Healthy(Training):
    """The character model, without a look at its own loss."""

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__("text", steps)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)


def train(training: Training, precision: str, fallback: str, callback: pl.Callback) -> None:
    """Train with a kind of fallback; the precision map that it leaves goes away."""
    with tempfile.TemporaryDirectory() as folder:
        plugin = AdaptivePrecision(precision, fallback=FALLBACKS[fallback]())
        fit(training, plugin, callback, default_root_dir=folder)


def step_seconds(precision: str, fallback: str) -> float:
    """Train for a block of steps and return the median seconds of one."""
    clock = Clock(WARM_UP)
    train(Healthy(), precision, fallback, clock)
    return statistics.median(clock.seconds)


def layer_seconds(precision: str, repeats: int = 200) -> dict[str, float]:
    """Return the median seconds of the layer alone, forward and backward: in `half`, in `fp32`, and as an `island`.

    Turn by turn, on half inputs of the shape that they have in the model; for FP32 they are cast by hand.
    """
    training = Healthy()
    layer: Any = training.get_submodule(ISLAND)
    inputs, _ = next(iter(training.train_dataloader()))
    x = torch.randn(*inputs.shape, layer.in_features).to(PRECISIONS[precision]).requires_grad_()
    islands = Islands(training, device_type="cpu")
    seconds: dict[str, list[float]] = {"half": [], "fp32": [], "island": []}
    for _ in range(repeats):
        for kind, taken in seconds.items():
            islands.set([ISLAND] if kind == "island" else [])
            x.grad = None
            start = time.perf_counter()
            with torch.autocast("cpu", PRECISIONS[precision], enabled=kind != "fp32"):
                y = layer(x.float() if kind == "fp32" else x)
            # What follows in the model is an addition in FP32.
            y.float().backward(torch.ones(y.shape))
            taken.append(time.perf_counter() - start)
    return {kind: statistics.median(taken) for kind, taken in seconds.items()}


def count_operators(precision: str, fallback: str, step: int = COUNTED) -> int:
    """Train for a few steps and return how many operators ran in one of them, all that surrounds it included."""
    counter = _CountOneStep(step)
    train(Healthy(steps=step + 2), precision, fallback, counter)
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
