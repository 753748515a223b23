"""Three small trainings on data that ships inside packages, for benchmarks that need real gradients.

`digits`: a perceptron with BatchNorm on scikit-learn's scanned digits; smoothed cross-entropy, SGD with momentum.
`text`: a character model, one transformer block, on the Python reference in the standard library; AdamW, warm-up.
`diabetes`: a deep perceptron on scikit-learn's diabetes table; summed squared error, AdamW. Hard on a scale:
its largest gradients start near 2**10, reach 2**12 and are below 1 at the end.
"""

import contextlib
import io
import itertools
import logging
import math
import warnings
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

TRAININGS = ("digits", "text", "diabetes")


class Batches(IterableDataset[list[Tensor]]):
    """Endless random batches, the same ones for the same seed."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int, seed: int) -> None:
        self.inputs, self.targets, self.batch_size, self.seed = inputs, targets, batch_size, seed

    def __iter__(self) -> Iterator[list[Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            rows = torch.randint(len(self.inputs), (self.batch_size,), generator=generator)
            yield [self.inputs[rows], self.targets[rows]]


class Training(pl.LightningModule):
    """A network, its data, its loss and its optimizer."""

    def __init__(self, name: str, steps: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.steps, self.seed = steps, seed
        self.net, self.data = {"digits": _digits, "text": _text, "diabetes": _diabetes}[name]()
        self.kind = name
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Return the loss of one batch, in fp32."""
        inputs, targets = batch
        outputs = self.net(inputs).float()
        if self.kind == "diabetes":
            return (outputs.squeeze(1) - targets).square().sum()
        smoothing = 0.1 if self.kind == "digits" else 0.0
        return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), label_smoothing=smoothing)

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        batch_size = 8 if self.kind == "text" else 32
        return DataLoader(Batches(*self.data, batch_size=batch_size, seed=self.seed), batch_size=None)

    def configure_optimizers(self):
        if self.kind == "digits":
            optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3 if self.kind == "text" else 1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._warm_up_and_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _warm_up_and_decay(self, step: int) -> float:
        if self.kind == "digits":
            return 1.0
        warm_up = max(1, self.steps // 50)
        return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps)))


def be_quiet() -> None:
    """Say nothing and use one thread from now on."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "mp_plugin"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fit(training: Training, plugin: Any, *callbacks: pl.Callback, **options: Any) -> None:
    """Train for as many steps as the training was made for, in one thread, without a word."""
    be_quiet()
    trainer = pl.Trainer(
        plugins=[plugin],
        callbacks=list(callbacks),
        accelerator="cpu",
        max_steps=training.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the summary at the end of a fit
        trainer.fit(training)


def _digits() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.BatchNorm1d(128, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return net, (images, torch.tensor(digits.target))


CONTEXT = 32


class CharacterModel(nn.Module):
    """One pre-norm transformer block over characters."""

    def __init__(self, characters: int, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(characters, width)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text) + self.place
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm_2(x))
        return self.head(self.norm_3(x))


def _text() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    text = "".join(topics[name] for name in sorted(topics))
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text])
    windows = codes.unfold(0, CONTEXT + 1, 1)
    return CharacterModel(len(alphabet)), (windows[:, :-1], windows[:, 1:])


def _diabetes() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    rows, targets = load_diabetes(return_X_y=True)
    inputs = torch.tensor(rows, dtype=torch.float32)
    inputs = inputs / inputs.std(dim=0)
    sizes = [inputs.shape[1], *[64] * 6]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 1)), (inputs, torch.tensor(targets, dtype=torch.float32) / 10)
