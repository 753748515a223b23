"""Shuffling as a function of seed and epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochShuffle(Sampler[int]):
    """All indices in an order that depends on seed and epoch alone, so that a resumed run draws the same batches.

    Args:
        size: number of examples.
        seed: the run's seed.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist())

    def __len__(self) -> int:
        return self.size
