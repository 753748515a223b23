"""The LightningModule around every planted network, and the parts that the networks share."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.faults.batches import Batch


class Planted(pl.LightningModule):
    """Trains a network on batches of inputs, targets and knobs; some faults replace `forward` or `loss`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, knob: Tensor) -> Tensor:
        return self.net(inputs, knob)  # type: ignore[no-any-return]

    def loss(self, outputs: Any, targets: Tensor, knob: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs.float(), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = self.loss(self(batch.inputs, batch.knob), batch.targets, batch.knob)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Block(nn.Module):
    """A part of a network that may be checkpointed."""

    reentrant: bool | None = None
    """Which of the two kinds of activation checkpointing; None for neither."""


def run(block: nn.Module, *inputs: Tensor) -> Tensor:
    """Call a block as its settings want it."""
    reentrant = getattr(block, "reentrant", None)
    if reentrant is None:
        return block(*inputs)  # type: ignore[no-any-return]
    return checkpoint(block, *inputs, use_reentrant=reentrant)  # type: ignore[no-any-return]


def checkpoint_blocks(model: nn.Module, *, use_reentrant: bool) -> None:
    """Let each block of a model recompute its activations."""
    for module in model.modules():
        if isinstance(module, Block):
            module.reentrant = use_reentrant


def constant(layer: nn.Linear | nn.Conv2d, weight: float) -> Any:
    """Give a layer one value for all its weights."""
    nn.init.constant_(layer.weight, weight)
    return layer
