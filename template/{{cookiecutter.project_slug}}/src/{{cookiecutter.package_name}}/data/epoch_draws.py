"""Random changes to an example as a function of seed, epoch and example."""

from collections.abc import Sequence
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

    def __getitems__(self, draws: Sequence[int]) -> list[Any]:
        """The examples of a batch, together where the data set can give them so, such as texts padded alike."""
        together = getattr(self.dataset, "__getitems__", None)
        if together is None or hasattr(self.dataset, "draw"):
            return [self[draw] for draw in draws]
        examples: list[Any] = together([draw % len(self) for draw in draws])
        return examples
