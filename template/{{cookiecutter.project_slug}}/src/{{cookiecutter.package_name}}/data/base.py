"""What all data modules share: three splits, their loaders, and what a model and a prediction need to know of them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset, Sampler

from {{cookiecutter.package_name}}.batch_seed import seed_next_batch
from {{cookiecutter.package_name}}.checks import require_count, require_positive
from {{cookiecutter.package_name}}.data.epoch_shuffle import EpochShuffle
from {{cookiecutter.package_name}}.data.fingerprint import fingerprint, parts_of
from {{cookiecutter.package_name}}.data.resumable_loader import ResumableLoader

SPLITS = ("train", "val", "test")
#: Names under which data come with a split, the likelier ones first.
SPLIT_NAMES = {"train": "train", "validation": "val", "val": "val", "valid": "val", "dev": "val", "test": "test"}
#: Shares of the data for testing and validation, where they come without these splits; the rest is for training.
SHARES = {"test": 0.15, "val": 0.1}


class DataModule(LightningDataModule):
    """Loaders over `self.datasets`, which `make_datasets` fills once.

    What a run draws depends on its seed alone (that of torch when the data module is made), not on the number of
    workers, and not on whether the run was interrupted, at the end of an epoch or within one.

    Args:
        batch_size: examples per batch, on each rank.
        num_workers: processes that prepare batches ahead; 0 for none, which is the quickest for data in memory.
        pin_memory: keep batches in memory from which a GPU copies faster; None for where there is a GPU.
    """

    def __init__(self, batch_size: int, num_workers: int = 0, pin_memory: bool | None = None) -> None:
        super().__init__()
        require_positive(batch_size=batch_size)
        require_count(num_workers=num_workers)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.seed = torch.initial_seed()
        self.datasets: dict[str, Dataset[Any]] = {}

    @abstractmethod
    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """The data sets of the three splits, by name.

        One that changes training examples at random does so in a method `draw`, as `EpochDraws` describes.
        """

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

    def fingerprint(self) -> str:
        """What the data are, as `sha256:<hex>`: here a hash of every example, augmentation aside."""
        self.setup()
        examples = (self.datasets[split][i] for split in SPLITS for i in range(len(self.datasets[split])))  # type: ignore[arg-type]
        return fingerprint(part for example in examples for part in parts_of(example))

    def setup(self, stage: str | None = None) -> None:
        """Make the data sets, the first time that it is called."""
        if not self.datasets:
            self.datasets = self.make_datasets()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed torch for a training batch, before anything that is random happens to it."""
        if self.trainer is not None and self.trainer.training:
            seed_next_batch(self.seed, self.trainer)
        return batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches, shuffled anew in each epoch."""
        dataset, trainer = self.datasets["train"], self.trainer
        if trainer is not None and trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            return self._in_order("train")  # the same few examples again and again, unchanged
        num_ranks, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        sampler = EpochShuffle(len(dataset), self.seed, num_ranks, rank)  # type: ignore[arg-type]
        # Workers start before Lightning tells the sampler the epoch, which is not 0 in a resumed run.
        progress = None if trainer is None else trainer.fit_loop.epoch_progress.current
        sampler.set_epoch(getattr(progress, "processed", 0))
        return ResumableLoader(dataset, self.batch_size, sampler, self._batches_done, **self._options(lasting=True))

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches, in order."""
        return self._in_order("val", lasting=True)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches, in order; on several processes each example comes once.

        Under FSDP the first ones come twice where their number does not divide by that of the processes: these gather
        weights together, so all need equally many batches.
        """
        sampler, trainer = None, self.trainer
        if trainer is not None and trainer.world_size > 1 and isinstance(trainer.strategy, DDPStrategy):
            share = {"num_replicas": trainer.world_size, "rank": trainer.global_rank}
            sampler = UnrepeatedDistributedSampler(self.datasets["test"], shuffle=False, **share)
        return self._in_order("test", sampler=sampler)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test batches again: predictions for examples whose answer is known."""
        return self.test_dataloader()

    def _in_order(self, split: str, lasting: bool = False, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        options = self._options(lasting)
        return DataLoader(self.datasets[split], batch_size=self.batch_size, sampler=sampler, **options)

    def _options(self, lasting: bool) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            # Starting processes takes longer than many an epoch.
            "persistent_workers": lasting and self.num_workers > 0,
            # Without its own, each new iterator would take a number from the generator that dropout draws from.
            "generator": torch.Generator(),
        }

    def _batches_done(self) -> tuple[int, float]:
        """Batches of this epoch that were trained on, and batches in an epoch."""
        if self.trainer is None:
            return 0, 1
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return done, self.trainer.num_training_batches
