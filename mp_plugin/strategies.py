"""What Lightning's strategies wrap around a module, and which of them the plugin can serve."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch.nn import Module

from mp_plugin.errors import UnsupportedError
from mp_plugin.instance import replace_attribute
from mp_plugin.step_start import StepStart


def lightning_module(model: Module) -> "pl.LightningModule":
    """Find the user's module inside the wrapper of a strategy."""
    while not isinstance(model, pl.LightningModule):
        model = model.module  # type: ignore[assignment]  # DDP, FSDP and DataParallel all name it so
    return model


def refuse_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that scales losses itself, and does not refuse us.

    Raises:
        UnsupportedError: for DeepSpeed; XLA asks for a plugin of its own.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        raise UnsupportedError(
            "DeepSpeedStrategy scales losses and steps by itself and cannot work with AdaptivePrecision; "
            "accepted: Trainer(precision=...) with DeepSpeed, or another strategy."
        )


def tell_of_each_batch(strategy: Strategy, start: StepStart) -> Callable[[], None]:
    """Let a `StepStart` know of each batch when every hook has seen it; returns what undoes it.

    Lightning asks callbacks first, then the module, then the strategy.
    """
    original = strategy.on_train_batch_start

    def on_train_batch_start(batch: Any, batch_idx: int) -> None:
        original(batch, batch_idx)
        start.next_batch(batch, batch_idx)

    return replace_attribute(strategy, "on_train_batch_start", on_train_batch_start)
