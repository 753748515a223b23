"""A small regression that remembers in which dtype its forward pass computed."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Regression(pl.LightningModule):
    def __init__(self, features: int, lr: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(features, 1)
        self.lr = lr
        self.compute_dtype: torch.dtype | None = None

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        outputs = self.layer(inputs)
        self.compute_dtype = outputs.dtype
        return torch.nn.functional.mse_loss(outputs, targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> DataLoader:
        inputs = torch.randn(32, self.layer.in_features)
        return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=8)
