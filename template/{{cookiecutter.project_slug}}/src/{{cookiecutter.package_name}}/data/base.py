"""What all data modules share: three splits, and what a model and a prediction need to know of the data."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from {{cookiecutter.package_name}}.checks import require_positive
from {{cookiecutter.package_name}}.data.epoch_shuffle import EpochShuffle

SPLITS = ("train", "val", "test")


class DataModule(LightningDataModule):
    """Loaders over `self.datasets`, which `make_datasets` fills once.

    The loaders have no worker processes: examples in memory are ready sooner than a process could hand them over.

    Args:
        batch_size: examples per batch.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        require_positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.datasets: dict[str, Dataset[Any]] = {}

    @abstractmethod
    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """The data sets of the three splits, by name."""

    def facts(self) -> dict[str, Any]:
        """What a model has to know of the data, such as `num_classes`: plain values, by the name of its setting."""
        return {}

    def settings_to_keep(self) -> dict[str, Any]:
        """What a prediction on new files has to know, such as names of classes: plain values, kept in checkpoints."""
        return {}

    def files_dataset(self, paths: Sequence[Path], kept: Mapping[str, Any]) -> Dataset[Any]:
        """Examples in a user's own files, each with its name: the file, and the line where a file holds several.

        Args:
            paths: files, and folders with files.
            kept: what `settings_to_keep` returned in the training run.

        Raises:
            ValueError: if this kind of data does not come from files, or names the first one that cannot be read.
        """
        raise ValueError(f"{type(self).__name__} cannot predict files: leave `input` out to predict the test split.")

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """What simple methods reach on the test split, by name, in the unit of the task's test metric."""

    def setup(self, stage: str | None = None) -> None:
        """Make the data sets, the first time that it is called."""
        if not self.datasets:
            self.datasets = self.make_datasets()

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches, shuffled anew in each epoch."""
        dataset = self.datasets["train"]
        sampler = EpochShuffle(len(dataset), seed=torch.initial_seed())  # type: ignore[arg-type]
        # Without a generator of its own, each new iterator would take a number from the one that dropout draws from.
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches, in order."""
        return DataLoader(self.datasets["val"], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches, in order."""
        return DataLoader(self.datasets["test"], batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test batches again: predictions for examples whose answer is known."""
        return self.test_dataloader()
