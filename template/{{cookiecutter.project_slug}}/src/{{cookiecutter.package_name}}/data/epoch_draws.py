"""Random changes to an example as a function of seed, epoch and example."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset


class EpochDraws(Dataset[Any]):
    """A training set whose indices carry the epoch, as those of `EpochShuffle` do.

    A data set that changes its examples at random has a method `draw(index, generator)` beside `__getitem__`, and
    takes all random numbers from the `generator`. It then yields the same in every process, in any order.

    Args:
        dataset: the examples.
        seed: the run's seed.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: int) -> Any:
        epoch, index = divmod(draw, len(self))
        if not hasattr(self.dataset, "draw"):
            return self.dataset[index]
        return self.dataset.draw(index, np.random.default_rng((self.seed, epoch, index)))
