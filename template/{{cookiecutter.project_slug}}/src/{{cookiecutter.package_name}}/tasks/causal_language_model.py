"""Which token comes next? Whatever the network, and whatever a token is."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from {{cookiecutter.package_name}}.data.token_sequences import NO_TOKEN
from {{cookiecutter.package_name}}.tasks.base import Task

Batch = Mapping[str, Tensor]


class CausalLanguageModel(Task):
    """Training by the cross-entropy of the next token, judged in bits per byte, which compare across tokenizers.

    A batch is {"tokens": ids [batch, time + 1], `NO_TOKEN` behind shorter sequences; "num_bytes": bytes of text of all
    tokens but the first, [batch]}.

    Args:
        net: ids [batch, time] to logits of the next one, [batch, time, vocabulary].
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
    """

    def __init__(self, net: nn.Module, lr: float, weight_decay: float, warmup_fraction: float) -> None:
        super().__init__(lr, weight_decay, warmup_fraction)
        self.net = net
        self.val_bits_per_byte = MeanMetric()
        self.test_bits_per_byte = MeanMetric()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each of `tokens` [batch, time], of shape [batch, time, vocabulary]."""
        return self.net(tokens)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the next token, in nats."""
        nats, _ = self._judge(batch)
        loss = nats.sum() / _num_tokens(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(nats))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss (nats per token) and bits per byte on the validation split."""
        self._evaluate(batch, "val", self.val_bits_per_byte)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss (nats per token) and bits per byte on the test split; returns the columns of `predict_step`."""
        return self._evaluate(batch, "test", self.test_bits_per_byte)

    def _evaluate(self, batch: Batch, stage: str, bits_per_byte: MeanMetric) -> dict[str, Tensor]:
        nats, prediction = self._judge(batch)
        columns = _columns(batch, nats, prediction)
        bits_per_byte.update(columns["bits_per_byte"], weight=batch["num_bytes"])
        self.log(f"{stage}/loss", nats.sum() / _num_tokens(batch), batch_size=len(nats), sync_dist=True)
        self.log(f"{stage}/bits_per_byte", bits_per_byte, prog_bar=True, batch_size=len(nats))
        return columns

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Columns of the prediction file, for each sequence.

        `bits_per_byte` is the mean over its bytes; `prediction` [batch, time] is the likeliest token at each place,
        `NO_TOKEN` where there is none.

        Args:
            batch: of a data module; of a user's own files, that and the sequences' names.
            batch_idx: its number.
        """
        inputs: Batch = batch[0] if isinstance(batch, list | tuple) else batch
        return _columns(inputs, *self._judge(inputs))

    def _judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every token but the first, given those before it, and the likeliest one."""
        tokens, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        # Later tokens have no influence on earlier places, so any id does for padding.
        logits = self(tokens.clamp(min=0))
        # The loss of a token in full precision, whatever the logits were computed in.
        nats = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=NO_TOKEN, reduction="none")
        return nats, logits.detach().argmax(dim=-1).masked_fill(targets == NO_TOKEN, NO_TOKEN)


def _num_tokens(batch: Batch) -> Tensor:
    return (batch["tokens"][:, 1:] != NO_TOKEN).sum().clamp(min=1)


def _columns(batch: Batch, nats: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    # A sequence of end-of-text tokens alone has no byte.
    num_bytes = batch["num_bytes"].to(nats.dtype).clamp(min=1)
    bits = nats.detach().to(torch.float32).sum(dim=1) / math.log(2)
    return {"bits_per_byte": bits / num_bytes, "prediction": prediction}
