"""Scanned digits."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from {{cookiecutter.package_name}}.checks import require_seed
from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.image_transform import make_transform
from {{cookiecutter.package_name}}.data.images import ImageDataModule

#: Shares of the images for training and validation; the rest is for testing.
TRAIN, VAL = 0.75, 0.1


class DigitsDataModule(ImageDataModule):
    """The 1,797 8x8 digits that scikit-learn ships, as float images [1, 8, 8] with values in [0, 1].

    Images that equal each other pixel for pixel stay in one split, so that none is tested on that was trained on.

    Args:
        batch_size: images per batch.
        split_seed: decides which image falls into which split.
        augment: move each training image by up to one pixel in both directions.
        num_workers: processes that prepare batches ahead; these images are in memory, and none is quickest.
        pin_memory: keep batches where a GPU copies faster; None for where there is a GPU.
    """

    def __init__(
        self,
        batch_size: int = 64,
        split_seed: int = 0,
        augment: bool = True,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        # A picture of the user's own is to be white on black, too.
        super().__init__(batch_size, make_transform(8, 1, mean=[0.0], std=[1.0]), num_workers, pin_memory)
        require_seed(split_seed=split_seed)
        self.split_seed, self.augment = split_seed, augment

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Images and labels of each split."""
        digits = load_digits()
        images = torch.from_numpy(digits.images / digits.images.max()).float().unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        self.class_names = [str(name) for name in digits.target_names]
        return {
            split: TensorDataset(images[rows], labels[rows])
            for split, rows in split_rows(digits.data, self.split_seed).items()
        }

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Augment training batches."""
        images, labels = batch
        if self.augment and self.trainer is not None and self.trainer.training:
            images = random_shift(images)
        return images, labels


def split_rows(features: NDArray[np.float64], split_seed: int) -> dict[str, NDArray[np.int64]]:
    """Row numbers of each split; equal rows fall into the same one.

    Args:
        features: one example per row.
        split_seed: decides which row falls into which split.
    """
    _, group = np.unique(features, axis=0, return_inverse=True)
    group = group.reshape(-1)
    num_groups = int(group.max()) + 1
    # A place in [0, 1) for each group, evenly spread in random order.
    place = np.random.default_rng(split_seed).permutation(num_groups)[group] / num_groups
    split = np.digitize(place, [TRAIN, TRAIN + VAL])
    return {name: np.flatnonzero(split == i) for i, name in enumerate(SPLITS)}


def random_shift(images: Tensor) -> Tensor:
    """Move each image [batch, channels, height, width] by -1, 0 or 1 pixels in both directions; zeros move in."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), device=images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
