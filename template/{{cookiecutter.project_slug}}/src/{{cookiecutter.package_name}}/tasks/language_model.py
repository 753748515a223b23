"""Which byte comes next?"""

import math

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from {{cookiecutter.package_name}}.models.gpt import GPT
from {{cookiecutter.package_name}}.tasks.base import Task


class LanguageModel(Task):
    """A causal language model over bytes, judged by bits per byte.

    Args:
        block_size: longest sequence, in bytes.
        num_layers: transformer blocks.
        num_heads: attention heads per block.
        width: numbers per position; a multiple of `num_heads`.
        dropout: share of units dropped in training.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
    """

    def __init__(
        self,
        block_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        warmup_fraction: float = 0.1,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_fraction)
        self.net = GPT(block_size, num_layers, num_heads, width, dropout)
        self.val_bits_per_byte = MeanMetric()
        self.test_bits_per_byte = MeanMetric()
        # Logged with the whole config by the run itself.
        self.save_hyperparameters(logger=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the byte after each of `tokens` [batch, time], of shape [batch, time, 256]."""
        return self.net(tokens)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        loss = self._nats(batch).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Loss and bits per byte on the validation split."""
        self._evaluate(batch, "val", self.val_bits_per_byte)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Loss and bits per byte on the test split."""
        self._evaluate(batch, "test", self.test_bits_per_byte)

    def _evaluate(self, batch: Tensor, stage: str, bits_per_byte: MeanMetric) -> None:
        nats = self._nats(batch)
        bits_per_byte.update(nats / math.log(2))
        self.log(f"{stage}/loss", nats.mean(), batch_size=len(batch))
        self.log(f"{stage}/bits_per_byte", bits_per_byte, prog_bar=True, batch_size=len(batch))

    def _nats(self, sequences: Tensor) -> Tensor:
        """Cross-entropy of every byte but the first, given those before it."""
        logits = self(sequences[:, :-1])
        # The loss of a byte in full precision, whatever the logits were computed in.
        return F.cross_entropy(logits.float().transpose(1, 2), sequences[:, 1:], reduction="none")

    def predict_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Column of the prediction file: the mean bits per byte of each sequence."""
        return {"bits_per_byte": self._nats(batch).mean(dim=1) / math.log(2)}
