"""Nobody pays for switching: without an overflow a run equals stock Lightning's bit by bit, over hundreds of steps."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, weights

STEPS = 240
INTERVAL = 50
"""Clean steps between growths: the scale grows four times, or once if three batches are a step."""
FIRST_SCALE = 2.0**6


class Convolutions(nn.Module):
    """Batch normalisation, whose statistics are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        images = tokens.float().reshape(-1, 1, 4, 4) - 4
        return self.layers(images)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """One cell, used once per token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell, self.head = nn.Embedding(10, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        _, state = self.cell(self.words(tokens))
        return self.head(state[0])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """A transformer block with dropout; the embedding is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.words(tokens)).mean(dim=1))  # type: ignore[no-any-return]


MODELS: dict[str, Any] = {"cnn": Convolutions, "gru": Recurrent, "transformer": Attention}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9),
    "fused-adamw": lambda parameters: AdamW(parameters, lr=3e-3, fused=True),
    "adam": lambda parameters: Adam(parameters, lr=3e-3, foreach=True),
    "adagrad": lambda parameters: Adagrad(parameters, lr=0.01),
}


class Classifier(pl.LightningModule):
    """Five classes of sixteen tokens, with a scheduler that moves by steps."""

    def __init__(self, model: str, optimizer: str) -> None:
        super().__init__()
        self.net, self.make_optimizer = MODELS[model](), OPTIMIZERS[optimizer]
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, STEPS), "interval": "step"}]


def tokens() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randint(10, (8 * STEPS, 16), generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(dim=1).remainder(5)), batch_size=8)


def fit(plugin: Any, model: str, optimizer: str, accumulate: int) -> Classifier:
    pl.seed_everything(5, verbose=False)
    module = Classifier(model, optimizer)
    quiet_trainer(plugins=[plugin], accumulate_grad_batches=accumulate).fit(module, tokens())
    return module


@pytest.mark.parametrize(
    ("model", "optimizer", "accumulate"),
    [
        ("cnn", "sgd", 1),
        ("cnn", "fused-adamw", 3),
        ("gru", "adam", 1),
        ("gru", "sgd", 3),
        ("transformer", "fused-adamw", 1),
        ("transformer", "adagrad", 3),
    ],
)
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_run_without_overflow_equals_stock_bit_by_bit(
    precision: str, model: str, optimizer: str, accumulate: int
) -> None:
    scaling, scaler = None, None
    if precision == "16-mixed":
        scaling = LossScaling(init_scale=FIRST_SCALE, growth_interval=INTERVAL)
        scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE, growth_interval=INTERVAL)
    plugin = AdaptivePrecision(precision, scaling=scaling)
    ours = fit(plugin, model, optimizer, accumulate)
    theirs = fit(MixedPrecision(precision, "cpu", scaler), model, optimizer, accumulate)  # type: ignore[arg-type]
    assert ours.losses == theirs.losses
    assert_bitwise_equal(weights(ours), weights(theirs))
    assert_bitwise_equal(list(ours.buffers()), list(theirs.buffers()))
    assert (plugin.effective_step, plugin.incidents) == (STEPS // accumulate, [])
    if scaler is not None:
        assert plugin.loss_scale == scaler.get_scale() == FIRST_SCALE * 2 ** (STEPS // accumulate // INTERVAL)


class Reduced(Regression):
    """A loss that is a mean or a sum over a batch."""

    def __init__(self, reduction: str, **options: Any) -> None:
        super().__init__(**options)
        self.reduction = reduction

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1], reduction=self.reduction)


@pytest.mark.parametrize("batch_size", [1, 4, 64, 512])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_first_ten_default_steps_lose_nothing_that_stock_would_not_lose(reduction: str, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(10 * batch_size, 8, generator=generator)
    data = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True).sin()), batch_size=batch_size)

    class Counted(AdamW):
        """Counts the steps that stock takes: its scaler does not call `step` when it skips."""

        taken = 0

        def step(self, closure: Any = None) -> Any:
            Counted.taken += 1
            return super().step(closure)

    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    quiet_trainer(plugins=[stock]).fit(Reduced(reduction, optimizer=Counted, lr=1e-3), data)
    plugin = AdaptivePrecision("fp16")
    quiet_trainer(plugins=[plugin]).fit(Reduced(reduction, optimizer=AdamW, lr=1e-3), data)
    assert plugin.effective_step >= Counted.taken
    assert plugin.effective_step + plugin.skipped_steps == 10
    if reduction == "mean":
        # A batch of one may be run again, as one target that is far off is enough; none is lost.
        assert plugin.skipped_steps == 0
