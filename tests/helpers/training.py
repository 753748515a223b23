"""Small real trainings, with faults planted where a test wants them."""

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

ROOT = TemporaryDirectory()
"""Where trainings of this process leave their files, unless a test wants to look at them."""


def no_fault(loss: Tensor, batch_idx: int) -> Tensor:
    """Leave the loss alone."""
    return loss


class Regression(pl.LightningModule):
    """A two-layer perceptron; `fault(loss, batch_idx)` may spoil the loss of a batch."""

    def __init__(
        self,
        *,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        fault: Callable[[Tensor, int], Tensor | None] = no_fault,
        **optimizer_options: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        self.make_optimizer = optimizer
        self.optimizer_options = {"lr": 0.1, **optimizer_options}
        self.fault = fault
        self.seen_dtypes: list[torch.dtype] = []
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        inputs, targets = batch
        outputs = self.net(inputs)
        self.seen_dtypes.append(outputs.dtype)
        loss = torch.nn.functional.mse_loss(outputs.float(), targets.float())
        self.losses.append(loss.item())
        return self.fault(loss, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters(), **self.optimizer_options)


def infinite_at(*batches: int) -> Callable[[Tensor, int], Tensor]:
    """A fault: the loss of these batches is not finite, which no loss scale can cure."""
    return lambda loss, batch_idx: loss * float("inf") if batch_idx in batches else loss


class _InfiniteGradient(torch.autograd.Function):
    """The identity, with an infinite gradient: an overflow that the loss does not show."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def overflowing_at(*batches: int) -> Callable[[Tensor, int], Tensor]:
    """A fault: the backward pass of these batches overflows, at every loss scale, with a finite loss."""
    return lambda loss, batch_idx: _InfiniteGradient.apply(loss) if batch_idx in batches else loss  # type: ignore[no-any-return, no-untyped-call]


def regression_data(*, batches: int = 8, batch_size: int = 4) -> DataLoader[Any]:
    """A fixed regression problem, in fixed order."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(batches * batch_size, 8, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True).sin()), batch_size=batch_size)


def quiet_trainer(**options: Any) -> pl.Trainer:
    """A CPU trainer without files and screen output."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": ROOT.name,
    }
    return pl.Trainer(**{**defaults, **options})


def fit(plugin: Any, model: Any = None, data: Any = None, **options: Any) -> Any:
    """Train with a plugin for an epoch, by default the regression on its data; returns the model."""
    model = Regression() if model is None else model
    quiet_trainer(plugins=[plugin], **options).fit(model, data or regression_data())
    return model


def weights(module: torch.nn.Module) -> list[Tensor]:
    """A copy of a module's parameters."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def assert_bitwise_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Equal shapes, dtypes and bits."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
