"""What Lightning's strategies wrap around a module, and which of them the plugin can serve."""

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch.nn import Module

from mp_plugin.errors import UnsupportedError


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
